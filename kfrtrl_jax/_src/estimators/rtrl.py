"""Real-time recurrent learning (Williams and Zipser, 1989): the influence matrix itself."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    SiteGradients,
    Structure,
)
from kfrtrl_jax._src.estimators.weights import Weights, weights_of


class RtrlState(NamedTuple):
    """The influence matrix.

    Attributes:
      influence: for every site G, [B, n, m, g]; [B, n, f, g] where fixed zeros are left out.
      weights: the weights of every site.
    """

    influence: tuple[Array, ...]
    weights: tuple[Weights, ...]


def rtrl() -> InfluenceEstimator:
    """G <- J G + I, exactly. O(n P) memory and O(n^2 P) work per lane, for P parameters.

    Pushed once in T steps it takes O(n^2 P / T) work per step, plus O(n P) for the T new terms: the
    algorithm of Schmidhuber (1992, Neural Computation 4(2)), after Williams and Peng (1990). Weights
    that a fixed mask sets to 0 are left out, such as those between heads.
    """

    def init(structure: Structure) -> RtrlState:
        lead, weights = (structure.batch_size, structure.state_size), weights_of(structure)
        zeros = tuple(jnp.zeros((*lead, *w.shape), structure.dtype) for w in weights)
        return RtrlState(zeros, weights)

    def push(state: RtrlState, linearization: Linearization, key: Key) -> RtrlState:
        del key
        influence = []
        for g, weights, site in zip(state.influence, state.weights, linearization.sites):
            carried = linearization.jacobian.times(g.reshape(*g.shape[:2], -1))
            # sum_t a_t (x) D_t, unit by unit.
            immediate = jax.vmap(weights.outer_sum, in_axes=(None, 2), out_axes=1)(
                site.inputs, site.derivatives.dense()
            )
            influence.append(carried.reshape(g.shape) + immediate)
        return RtrlState(tuple(influence), state.weights)

    def pull(state: RtrlState, cotangent: Array) -> SiteGradients:
        # Lane by lane: in one product of all, each result would be added up over B n rows of memory.
        by_lane = [
            jnp.einsum("bn,bnk->bk", cotangent, g.reshape(*g.shape[:2], -1))
            for g in state.influence
        ]
        return tuple(
            weights.everywhere(jnp.sum(x, axis=0).reshape(weights.shape))
            for x, weights in zip(by_lane, state.weights)
        )

    return InfluenceEstimator(init, push, pull)
