"""Forward gradients: tangents along random directions (Silver et al., 2021; Baydin et al., 2022).

arXiv:2202.08587.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    SiteGradients,
    Structure,
)
from kfrtrl_jax._src.estimators.weights import Weights, weights_of
from kfrtrl_jax._src.xla import norm


class ForwardGradientState(NamedTuple):
    """Directions v_1 .. v_k in the space of the weights, and the state's tangents along them.

    Attributes:
      tangents: s. = G v, [B, n, k].
      directions: v, for every site [B, k, m, g]; [B, k, f, g] where fixed zeros are left out.
      weights: the weights of every site.
    """

    tangents: Float[Array, "B n k"]
    directions: tuple[Float[Array, "B k _f _g"], ...]
    weights: tuple[Weights, ...]


def forward_gradient(directions: int = 1) -> InfluenceEstimator:
    """s. <- J s. + I v, and G~ = s. v^T: the mean over k standard normal v, drawn for each lane.

    Since s. = G v exactly, E[s. v^T] = G E[v v^T] = G: the estimate is unbiased as long as v has not
    changed since G was last 0. A new v with the old tangent would lose all but the immediate influence.
    So a direction is drawn again where J s. = 0, and only there. With normal v that is where J G = 0,
    with probability 1: at a lane's first step and where it starts anew, whatever the value of v. The
    noise is P + 1 times |G|^2 for P weights, divided by k.

    O(k (n + P)) memory and O(k (n^2 + P)) work per lane. On a stream without resets every update would
    be along the same v: wrap it in `reset_every`, at whose resets v is drawn again.

    Args:
      directions: k.

    Raises:
      ValueError: if directions is less than 1.
    """
    bounds.require("[1, inf)", directions=directions)

    def init(structure: Structure) -> ForwardGradientState:
        b, dtype, weights = structure.batch_size, structure.dtype, weights_of(structure)
        return ForwardGradientState(
            jnp.zeros((b, structure.state_size, directions), dtype),
            tuple(jnp.zeros((b, directions, *w.shape), dtype) for w in weights),
            weights,
        )

    def push(
        state: ForwardGradientState, linearization: Linearization, key: Key
    ) -> ForwardGradientState:
        carried = linearization.times(state.tangents)
        anew = jnp.all(carried == 0, axis=1)  # [B, k]

        def draw(
            old: tuple[Float[Array, "B k _f _g"], ...],
        ) -> tuple[Float[Array, "B k _f _g"], ...]:
            keys = jax.random.split(key, len(old))
            return tuple(
                jnp.where(anew[:, :, None, None], jax.random.normal(k, v.shape, v.dtype), v)
                for k, v in zip(keys, old)
            )

        v = jax.lax.cond(jnp.any(anew), draw, lambda old: old, state.directions)
        along = [
            weights.times_inputs(site.inputs, of_site)
            for weights, site, of_site in zip(state.weights, linearization.sites, v)
        ]
        immediate = [jnp.sum(x, axis=1) for x in linearization.times_each(along)]
        return ForwardGradientState(sum(immediate, carried), v, state.weights)

    def pull(state: ForwardGradientState, cotangent: Float[Array, "B n"]) -> SiteGradients:
        weight = jnp.einsum("bn,bnk->bk", cotangent, state.tangents) / directions
        return tuple(
            weights.everywhere(jnp.einsum("bk,bkmg->mg", weight, v))
            for weights, v in zip(state.weights, state.directions)
        )

    def diagnostics(state: ForwardGradientState) -> dict[str, Array]:
        return {"tangents_norm": jnp.mean(norm(state.tangents))}

    return InfluenceEstimator(init, push, pull, diagnostics)
