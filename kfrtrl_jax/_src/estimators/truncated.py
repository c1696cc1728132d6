"""No influence: the learner then computes truncated backpropagation through time."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    SiteGradients,
    Structure,
)


def truncated() -> InfluenceEstimator:
    """G = 0. With a segment of length K this is TBPTT(K) (Williams and Peng, 1990)."""

    def init(structure: Structure) -> SiteGradients:
        return tuple(
            jnp.zeros((site.input_size, site.output_size), structure.dtype)
            for site in structure.sites
        )

    def push(state: SiteGradients, linearization: Linearization, key: Key) -> SiteGradients:
        del linearization, key
        return state

    def pull(state: SiteGradients, cotangent: Float[Array, "B n"]) -> SiteGradients:
        del cotangent
        return state

    return InfluenceEstimator(init, push, pull)
