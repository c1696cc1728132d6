"""Gradients scaled down by the part of them that is noise, as their independent copies tell it."""

from __future__ import annotations

from typing import Any, NamedTuple

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
from kfrtrl_jax._src.estimators.combinators import average
from kfrtrl_jax._src.estimators.weights import Weights, weights_of
from kfrtrl_jax._src.xla import at_least_float32


class ShrinkState(NamedTuple):
    """Copies of an estimator, and what their gradients were like.

    Attributes:
      copies: the states, with a leading axis [copies, ...].
      power: of every site, the running mean of |g|^2 for the mean g of the copies' gradients.
      noise: of every site, the running mean of an estimate of g's variance.
      weights: the weights of every site; others count neither for g nor for its noise.
    """

    copies: Any
    power: Float[Array, " sites"]
    noise: Float[Array, " sites"]
    weights: tuple[Weights, ...]


def shrink(
    estimator: InfluenceEstimator, copies: int = 2, decay: float = 0.99
) -> InfluenceEstimator:
    """The mean gradient g of independent copies, times signal / (signal + noise) for every site.

    For an unbiased estimator, the mean inner product of the gradients of two copies is the squared norm
    of the true one, the signal, and their spread tells the noise of g. The factor that they give is the
    one of least squared error over the gradients so far: 1 where the copies agree, as with `rtrl()`,
    and close to 0 where they do not, as with `truncated()`. As the mean of |g|^2 is signal plus noise,
    the factor is computed as 1 - noise / |g|^2, or 0 if that is negative.

    Biased by design, towards 0. It learns from the gradients that are used, which a learner passes on
    (`InfluenceEstimator.observe`); until then the factor is 1. The state has a leading axis
    [copies, ...]. Pulling costs twice as much as with `average`, pushing the same.

    Args:
      estimator: any estimator; without noise of its own it is left as it is.
      copies: at least 2.
      decay: of the running means, per push.

    Raises:
      ValueError: if copies is less than 2, or decay is not in [0, 1).
    """
    if copies < 2:
        raise ValueError(f"copies must be at least 2, to tell noise from signal, got {copies}")
    bounds.require("[0, 1)", decay=decay)
    mean = average(estimator, copies)

    def init(structure: Structure) -> ShrinkState:
        nothing = jnp.zeros(len(structure.sites), jnp.promote_types(structure.dtype, jnp.float32))
        return ShrinkState(mean.init(structure), nothing, nothing, weights_of(structure))

    def push(state: ShrinkState, linearization: Linearization, key: Key) -> ShrinkState:
        return state._replace(copies=mean.push(state.copies, linearization, key))

    def pull(state: ShrinkState, cotangent: Float[Array, "B n"]) -> SiteGradients:
        gradients = mean.pull(state.copies, cotangent)
        return tuple(f.astype(g.dtype) * g for f, g in zip(_factors(state), gradients))

    def observe(state: ShrinkState, cotangents: Float[Array, "U B n"]) -> ShrinkState:
        def measured(cotangent: Float[Array, "B n"]) -> tuple[Array, Array]:
            pulled = jax.vmap(estimator.pull, in_axes=(0, None))(state.copies, cotangent)
            found = [
                _power_and_noise(at_least_float32(weights.existing(g)))
                for weights, g in zip(state.weights, pulled)
            ]
            return jnp.stack([p for p, _ in found]), jnp.stack([v for _, v in found])

        def updated(old: Array, new: Array) -> Array:
            # A lane with infinite influence tells nothing of the others.
            return jnp.where(jnp.isfinite(new), decay * old + (1 - decay) * new, old)

        power, noise = (jnp.mean(x, axis=0) for x in jax.lax.map(measured, cotangents))
        return ShrinkState(
            mean.observe(state.copies, cotangents),
            updated(state.power, power),
            updated(state.noise, noise),
            state.weights,
        )

    def diagnostics(state: ShrinkState) -> dict[str, Array]:
        factors = {f"shrinkage_{site}": f for site, f in enumerate(_factors(state))}
        return {**mean.diagnostics(state.copies), **factors}

    return InfluenceEstimator(init, push, pull, diagnostics, observe)


def _power_and_noise(gradients: Float[Array, "copies m g"]) -> tuple[Array, Array]:
    """|g|^2 of the mean of independent gradients, and an unbiased estimate of its variance."""
    copies = len(gradients)
    mean = jnp.mean(gradients, axis=0)
    spread = jnp.sum((gradients - mean) ** 2) / (copies - 1)
    return jnp.sum(mean**2), spread / copies


def _factors(state: ShrinkState) -> Float[Array, " sites"]:
    known = state.power > 0
    share = state.noise / jnp.where(known, state.power, 1)
    return jnp.where(known, jnp.maximum(1 - share, 0), 1)
