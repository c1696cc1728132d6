"""Recovery of lanes whose influence has become infinite after an infinite derivative.

Such a lane is lost until it starts anew. J = 0 does not help then, as 0 times infinity is NaN: its
influence has to be set to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from kfrtrl_jax._src.base import Array, InfluenceEstimator, Structure
from kfrtrl_jax._src.lanes import axes_of_lanes
from kfrtrl_jax._src.xla import at_least_float32

Forget = Callable[[Any, Bool[Array, " B"]], Any]
Lost = Callable[[Any], Bool[Array, " B"]]


def make_forget(estimator: InfluenceEstimator, structure: Structure) -> Forget | None:
    """A function (estimator's state, lanes [B]) -> the state with these lanes reset to their start.

    None for a state without lanes.
    """
    axes = axes_of_lanes(estimator, structure)
    if all(axis < 0 for axis in jax.tree.leaves(axes)):
        return None

    def forget(state: Any, lanes: Bool[Array, " B"]) -> Any:
        def leaf(axis: int, new: Array, old: Array) -> Array:
            if axis < 0:
                return old
            return jnp.where(
                jnp.expand_dims(lanes, [i for i in range(old.ndim) if i != axis]), new, old
            )

        return jax.tree.map(leaf, axes, estimator.init(structure), state)

    return forget


def make_lost(estimator: InfluenceEstimator, structure: Structure) -> Lost:
    """A function estimator's state -> [B], the lanes in which it is not finite."""
    axes = axes_of_lanes(estimator, structure)

    def lost(state: Any) -> Bool[Array, " B"]:
        pairs = zip(jax.tree.leaves(axes), jax.tree.leaves(state), strict=True)
        return lanes_lost([pair for pair in pairs if pair[0] >= 0], structure.batch_size)

    return lost


def lanes_lost(pairs: Iterable[tuple[int, Array]], batch_size: int) -> Bool[Array, " B"]:
    """The lanes in which arrays are not finite; of each array, the axis of the lanes comes first."""
    found = jnp.zeros(batch_size, bool)
    for axis, x in pairs:
        if jnp.issubdtype(x.dtype, jnp.inexact):
            others = tuple(i for i in range(x.ndim) if i != axis)
            found |= ~jnp.all(jnp.isfinite(x), axis=others)
    return found


_Found = TypeVar("_Found", bound=tuple[Any, ...])


def recovered(found: _Found, again: Callable[[], _Found]) -> tuple[_Found, Bool[Array, ""]]:
    """((influence, gradients, ..), as found or as `again` computes it; whether `again` was needed).

    `again` is called if the gradients are not finite, for all lanes and all vmapped runs at once.
    """
    lost = ~all_finite(found[1])
    return jax.lax.cond(anywhere(lost), again, lambda: found), lost


def all_finite(arrays: Iterable[Array]) -> Bool[Array, ""]:
    """Whether all entries and their sums are finite: much cheaper than to test each entry."""
    return jnp.isfinite(sum(jnp.sum(at_least_float32(x)) for x in arrays))


@jax.custom_batching.custom_vmap
def anywhere(x: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether x is true in any vmapped run, so that a conditional on it stays a conditional."""
    return jnp.any(x)


@anywhere.def_vmap
def _anywhere_in_batch(axis_size: int, in_batched: Any, x: Array) -> tuple[Array, bool]:
    del axis_size, in_batched
    return anywhere(x), False
