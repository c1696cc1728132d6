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
from kfrtrl_jax._src.xla import outer_sum


class RtrlState(NamedTuple):
    """The influence matrix.

    Attributes:
      influence: for every site G, [B, n, m, g].
    """

    influence: tuple[Array, ...]


def rtrl() -> InfluenceEstimator:
    """G <- J G + I, exactly. O(n P) memory and O(n^2 P) work per lane, for P parameters.

    Pushed once in T steps it takes O(n^2 P / T) work per step, plus O(n P) for the T new terms: the
    algorithm of Schmidhuber (1992, Neural Computation 4(2)), after Williams and Peng (1990).
    """

    def init(structure: Structure) -> RtrlState:
        b, n = structure.batch_size, structure.state_size
        return RtrlState(
            tuple(
                jnp.zeros((b, n, site.input_size, site.output_size), structure.dtype)
                for site in structure.sites
            )
        )

    def push(state: RtrlState, linearization: Linearization, key: Key) -> RtrlState:
        del key
        influence = []
        for g, site in zip(state.influence, linearization.sites):
            carried = linearization.jacobian.times(g.reshape(*g.shape[:2], -1))
            # sum_t a_t (x) D_t, unit by unit.
            immediate = jax.vmap(outer_sum, in_axes=(None, 2), out_axes=1)(
                site.inputs, site.derivatives.dense()
            )
            influence.append(carried.reshape(g.shape) + immediate)
        return RtrlState(tuple(influence))

    def pull(state: RtrlState, cotangent: Array) -> SiteGradients:
        # Lane by lane: in one product of all, each result would be added up over B n rows of memory.
        by_lane = [
            jnp.einsum("bn,bnk->bk", cotangent, g.reshape(*g.shape[:2], -1))
            for g in state.influence
        ]
        return tuple(
            jnp.sum(x, axis=0).reshape(g.shape[2:]) for x, g in zip(by_lane, state.influence)
        )

    return InfluenceEstimator(init, push, pull)
