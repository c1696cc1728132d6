"""Approximations of the influence matrix, a file each, and what combines them."""

from collections.abc import Callable

from kfrtrl_jax.base import InfluenceEstimator
from kfrtrl_jax.estimators.combinators import average, reset_every
from kfrtrl_jax.estimators.forward_gradient import forward_gradient
from kfrtrl_jax.estimators.kf_rtrl import kf_rtrl
from kfrtrl_jax.estimators.ktp import ktp
from kfrtrl_jax.estimators.local_traces import e_prop, rflo
from kfrtrl_jax.estimators.ok import ok
from kfrtrl_jax.estimators.rtrl import rtrl
from kfrtrl_jax.estimators.snap import snap
from kfrtrl_jax.estimators.tracking import partition, tracked
from kfrtrl_jax.estimators.truncated import truncated
from kfrtrl_jax.estimators.uoro import uoro

ESTIMATORS: dict[str, Callable[..., InfluenceEstimator]] = {
    "rtrl": rtrl,
    "uoro": uoro,
    "kf_rtrl": kf_rtrl,
    "ok": ok,
    "forward_gradient": forward_gradient,
    "ktp": ktp,
    "snap": snap,
    "e_prop": e_prop,
    "rflo": rflo,
    "truncated": truncated,
}

__all__ = [
    "ESTIMATORS",
    "average",
    "e_prop",
    "forward_gradient",
    "kf_rtrl",
    "ktp",
    "ok",
    "partition",
    "reset_every",
    "rflo",
    "rtrl",
    "snap",
    "tracked",
    "truncated",
    "uoro",
]
