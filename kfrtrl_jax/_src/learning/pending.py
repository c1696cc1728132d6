"""What a prediction leaves behind for the update that comes once its target is known."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable
from typing import Any

import jax

from kfrtrl_jax._src.base import Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["arrays"],
    meta_fields=["structure", "places"],
)
@dataclasses.dataclass(frozen=True)
class Pending:
    """The forward pass of one time step, without the arrays that the learner's state holds anyway.

    So the state can be donated to `update`. A pytree of arrays: it passes through `jax.jit`.

    Attributes:
      arrays: what the backward pass needs and the state does not hold.
      structure: how they belong together.
      places: for every array of the forward pass its number in the state, or -1 for the next one of
        `arrays`.
    """

    arrays: tuple[Array, ...]
    structure: Hashable
    places: tuple[int, ...]


def put_aside(passed: Any, state: Any) -> Pending:
    """The arrays of a forward pass, a pytree, that was made with a learner's state."""
    known = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(state))}
    leaves, structure = jax.tree.flatten(passed)
    places = tuple(known.get(id(leaf), -1) for leaf in leaves)
    arrays = tuple(leaf for leaf, place in zip(leaves, places) if place < 0)
    return Pending(arrays, structure, places)


def taken_up(pending: Pending, state: Any) -> Any:
    """The forward pass again, for the state that it was made with."""
    held, own = jax.tree.leaves(state), iter(pending.arrays)
    leaves = [held[place] if place >= 0 else next(own) for place in pending.places]
    structure: Any = pending.structure
    return jax.tree.unflatten(structure, leaves)
