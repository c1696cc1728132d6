"""Approximations of the influence matrix, a file each, and what combines them."""

from collections.abc import Callable

from kfrtrl_jax.base import InfluenceEstimator
from kfrtrl_jax.estimators.combinators import average, reset_every
from kfrtrl_jax.estimators.kf_rtrl import kf_rtrl
from kfrtrl_jax.estimators.rtrl import rtrl
from kfrtrl_jax.estimators.truncated import truncated
from kfrtrl_jax.estimators.uoro import uoro

ESTIMATORS: dict[str, Callable[..., InfluenceEstimator]] = {
    "rtrl": rtrl,
    "uoro": uoro,
    "kf_rtrl": kf_rtrl,
    "truncated": truncated,
}

__all__ = ["ESTIMATORS", "average", "kf_rtrl", "reset_every", "rtrl", "truncated", "uoro"]
