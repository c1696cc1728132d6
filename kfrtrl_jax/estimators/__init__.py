"""Approximations of the influence matrix, a file each, and what combines them."""

from collections.abc import Callable

from kfrtrl_jax.base import InfluenceEstimator
from kfrtrl_jax.estimators.combinators import (
    antithetic,
    average,
    control_variate,
    mixture,
    random_resets,
    reset_every,
)
from kfrtrl_jax.estimators.diagonal_rtrl import diagonal_rtrl
from kfrtrl_jax.estimators.forward_gradient import forward_gradient
from kfrtrl_jax.estimators.kernl import kernl
from kfrtrl_jax.estimators.kf_rtrl import kf_rtrl
from kfrtrl_jax.estimators.ktp import ktp
from kfrtrl_jax.estimators.local_traces import e_prop, rflo
from kfrtrl_jax.estimators.nobacktrack import nobacktrack
from kfrtrl_jax.estimators.ok import ok
from kfrtrl_jax.estimators.reverse_kf_rtrl import reverse_kf_rtrl
from kfrtrl_jax.estimators.rtrl import rtrl
from kfrtrl_jax.estimators.sketched import sketched
from kfrtrl_jax.estimators.snap import snap
from kfrtrl_jax.estimators.tracking import partition, tracked
from kfrtrl_jax.estimators.truncated import truncated
from kfrtrl_jax.estimators.uoro import uoro

ESTIMATORS: dict[str, Callable[..., InfluenceEstimator]] = {
    "rtrl": rtrl,
    "diagonal_rtrl": diagonal_rtrl,
    "uoro": uoro,
    "nobacktrack": nobacktrack,
    "kf_rtrl": kf_rtrl,
    "reverse_kf_rtrl": reverse_kf_rtrl,
    "ok": ok,
    "forward_gradient": forward_gradient,
    "ktp": ktp,
    "snap": snap,
    "sketched": sketched,
    "e_prop": e_prop,
    "rflo": rflo,
    "kernl": kernl,
    "truncated": truncated,
}

# What makes an estimator of estimators and plain values.
COMBINATORS: dict[str, Callable[..., InfluenceEstimator]] = {
    "average": average,
    "antithetic": antithetic,
    "control_variate": control_variate,
    "mixture": mixture,
    "random_resets": random_resets,
    "reset_every": reset_every,
}

# What claims that the mean of its estimate is the influence matrix; combinators if all in them do.
# A mixture is none of them, as it depends on its weights.
UNBIASED = frozenset(
    {
        "rtrl",
        "diagonal_rtrl",
        "uoro",
        "nobacktrack",
        "kf_rtrl",
        "reverse_kf_rtrl",
        "ok",
        "forward_gradient",
        "ktp",
        "average",
        "antithetic",
        "control_variate",
        "random_resets",
    }
)

__all__ = [
    "COMBINATORS",
    "ESTIMATORS",
    "UNBIASED",
    "antithetic",
    "average",
    "control_variate",
    "diagonal_rtrl",
    "e_prop",
    "forward_gradient",
    "kernl",
    "kf_rtrl",
    "ktp",
    "mixture",
    "nobacktrack",
    "ok",
    "partition",
    "random_resets",
    "reset_every",
    "reverse_kf_rtrl",
    "rflo",
    "rtrl",
    "sketched",
    "snap",
    "tracked",
    "truncated",
    "uoro",
]
