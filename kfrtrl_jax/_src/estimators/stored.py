"""Estimators whose state is kept in fewer bits."""

from __future__ import annotations

from typing import Any, Literal

import jax
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
from kfrtrl_jax._src.lanes import axes_of_lanes

Precision = Literal["bfloat16", "float32"]


def stored(estimator: InfluenceEstimator, dtype: Precision = "bfloat16") -> InfluenceEstimator:
    """The estimator, with the real numbers of its state kept in another precision between its steps.

    That is what it keeps for each lane; what all share, as the running means of `shrink`, is small.

    It computes in the precision of the run. A push rounds each number at random to one of its two
    neighbours, so that the mean is the number itself: to the nearest, small steps onto a large sum
    would be lost. As the numbers are rounded independently, an estimate that is linear in each of its
    factors stays unbiased. In bfloat16, with 8 significant bits, the state of a float32 run takes half
    the memory; it costs a random number for each of its numbers at every push.

    Args:
      estimator: of the influence.
      dtype: of the state; "float32" makes sense for a run in float64.

    Raises:
      ValueError: for another dtype.
    """
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"a state is stored in bfloat16 or float32, got {dtype!r}")
    kept = jnp.dtype(dtype)

    def opened(state: Any, precision: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(precision) if x.dtype == kept else x, state)

    def closed(state: Any, before: Any, key: Key | None = None) -> Any:
        """The state, rounded where it was before."""
        leaves, tree = jax.tree.flatten(state)
        keys = [None] * len(leaves) if key is None else jax.random.split(key, len(leaves))
        rounded = [
            _rounded(x, kept, own) if old.dtype == kept else x
            for x, old, own in zip(leaves, jax.tree.leaves(before), keys, strict=True)
        ]
        return jax.tree.unflatten(tree, rounded)

    def init(structure: Structure) -> Any:
        def first(x: Array, axis: int) -> Array:
            is_kept = axis >= 0 and jnp.issubdtype(x.dtype, jnp.floating)
            return x.astype(kept) if is_kept else x

        return jax.tree.map(first, estimator.init(structure), axes_of_lanes(estimator, structure))

    def push(state: Any, linearization: Linearization, key: Key) -> Any:
        own, key = jax.random.split(key)
        numbers = [x.dtype for x in jax.tree.leaves(linearization)]
        precision = jnp.result_type(*(x for x in numbers if jnp.issubdtype(x, jnp.floating)))
        new = estimator.push(opened(state, precision), linearization, own)
        return closed(new, state, key)

    def pull(state: Any, cotangent: Float[Array, "B n"]) -> SiteGradients:
        return estimator.pull(opened(state, cotangent.dtype), cotangent)

    def diagnostics(state: Any) -> dict[str, Array]:
        return estimator.diagnostics(opened(state, float))

    def observe(state: Any, cotangents: Float[Array, "U B n"]) -> Any:
        return closed(estimator.observe(opened(state, cotangents.dtype), cotangents), state)

    return InfluenceEstimator(init, push, pull, diagnostics, observe)


def _rounded(x: Array, dtype: Any, key: Key | None = None) -> Array:
    """To the nearest without a key; with one to either neighbour at random, with mean x."""
    nearest = x.astype(dtype)
    if key is None or nearest.dtype == x.dtype:
        return nearest
    error = x - nearest.astype(x.dtype)
    other = jnp.nextafter(nearest, jnp.where(error > 0, jnp.inf, -jnp.inf).astype(dtype))
    share = error / (other.astype(x.dtype) - nearest.astype(x.dtype))
    return jnp.where(jax.random.uniform(key, x.shape) < share, other, nearest)
