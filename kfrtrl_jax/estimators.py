"""Estimators of the influence matrix, and combinators of them."""

from kfrtrl_jax._src.estimators.combinators import (
    antithetic,
    average,
    control_variate,
    mixture,
    random_resets,
    reset_every,
)
from kfrtrl_jax._src.estimators.diagonal_rtrl import diagonal_rtrl
from kfrtrl_jax._src.estimators.forward_gradient import forward_gradient
from kfrtrl_jax._src.estimators.kernl import kernl
from kfrtrl_jax._src.estimators.kf_rtrl import kf_rtrl
from kfrtrl_jax._src.estimators.ktp import ktp
from kfrtrl_jax._src.estimators.layerwise import layerwise
from kfrtrl_jax._src.estimators.local_traces import e_prop, rflo
from kfrtrl_jax._src.estimators.nobacktrack import nobacktrack
from kfrtrl_jax._src.estimators.ok import ok
from kfrtrl_jax._src.estimators.per_head import per_head
from kfrtrl_jax._src.estimators.per_lane import pull_lanes
from kfrtrl_jax._src.estimators.pp_prop import pp_prop
from kfrtrl_jax._src.estimators.random_transport import random_transport
from kfrtrl_jax._src.estimators.registry import COMBINATORS, ESTIMATORS, UNBIASED
from kfrtrl_jax._src.estimators.reverse_kf_rtrl import reverse_kf_rtrl
from kfrtrl_jax._src.estimators.rtrl import rtrl
from kfrtrl_jax._src.estimators.shrink import shrink
from kfrtrl_jax._src.estimators.sketched import sketched
from kfrtrl_jax._src.estimators.snap import snap
from kfrtrl_jax._src.estimators.stored import stored
from kfrtrl_jax._src.estimators.tracking import partition, tracked
from kfrtrl_jax._src.estimators.truncated import truncated
from kfrtrl_jax._src.estimators.uoro import uoro

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
    "layerwise",
    "mixture",
    "nobacktrack",
    "ok",
    "partition",
    "per_head",
    "pp_prop",
    "pull_lanes",
    "random_resets",
    "random_transport",
    "reset_every",
    "reverse_kf_rtrl",
    "rflo",
    "rtrl",
    "shrink",
    "sketched",
    "snap",
    "stored",
    "tracked",
    "truncated",
    "uoro",
]
