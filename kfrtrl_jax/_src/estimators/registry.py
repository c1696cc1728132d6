"""Estimators and combinators by their names in configs."""

from collections.abc import Callable

from kfrtrl_jax._src.base import InfluenceEstimator
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
from kfrtrl_jax._src.estimators.pp_prop import pp_prop
from kfrtrl_jax._src.estimators.random_transport import random_transport
from kfrtrl_jax._src.estimators.reverse_kf_rtrl import reverse_kf_rtrl
from kfrtrl_jax._src.estimators.rtrl import rtrl
from kfrtrl_jax._src.estimators.shrink import shrink
from kfrtrl_jax._src.estimators.sketched import sketched
from kfrtrl_jax._src.estimators.snap import snap
from kfrtrl_jax._src.estimators.stored import stored
from kfrtrl_jax._src.estimators.truncated import truncated
from kfrtrl_jax._src.estimators.uoro import uoro

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
    "pp_prop": pp_prop,
    "kernl": kernl,
    "truncated": truncated,
}

# Factories whose arguments are estimators and plain values.
COMBINATORS: dict[str, Callable[..., InfluenceEstimator]] = {
    "average": average,
    "antithetic": antithetic,
    "control_variate": control_variate,
    "mixture": mixture,
    "random_resets": random_resets,
    "random_transport": random_transport,
    "reset_every": reset_every,
    "shrink": shrink,
    "layerwise": layerwise,
    "per_head": per_head,
    "stored": stored,
}

# Estimators whose mean is the influence matrix, and combinators that are unbiased if all their
# arguments are. `mixture` and `random_transport` are not among them: that depends on the weights, and
# on whether the paths are rescaled. `shrink` and `layerwise` are biased.
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
        "per_head",
        "stored",
    }
)
