"""Numbers that are not finite: where in a run they come from, and segments dropped because of them.

Whether a segment went wrong is read off its loss and its gradient, which costs nothing. Only if one of
them is not finite are the arrays of the state looked at, before the segment and after it. An array that
has no part in either, such as a state of the optimizer, is looked at when the chunk ends, and so is the
influence, which is large: what is not finite in it makes the gradient of the next segment so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from kfrtrl_jax._src.learning.recovery import anywhere
from kfrtrl_jax._src.xla import at_least_float32, in_place_if
from kfrtrl_jax.base import Array
from kfrtrl_jax.learning import Learner, LearnerState
from kfrtrl_jax.training.segments import RunState, Segments, Sums

# A run fails when it has skipped more segments than this.
MOST_SKIPPED = 100
# A run fails when its running loss is more than so many times that of chance, or than so much.
TIMES_CHANCE = 1e6

_LOSS, _GRADIENT = "the loss", "the gradient"
_RUNNING_LOSS, _SKIPPED = "running_loss", "skipped"


class Found(NamedTuple):
    """The first thing that is wrong in a chunk.

    Attributes:
      step: the time step after which it was, or -1.
      leaf: what it is, an index into `names`, or -1.
    """

    step: Int[Array, ""]
    leaf: Int[Array, ""]


def names(learner: LearnerState) -> tuple[str, ...]:
    """What can be wrong, by a learner's state or its shapes: the nearest to a cause first."""
    carry, *others = _ordered(learner)
    leaves = _floats(learner, carry), _floats(learner, *others)
    return (*leaves[0], _LOSS, _GRADIENT, *leaves[1], _RUNNING_LOSS, _SKIPPED)


def described(state: RunState, leaf: int, running_loss: float) -> str:
    """What is wrong, in words."""
    name = names(state.learner)[leaf]
    if name == _RUNNING_LOSS:
        reached = f"the running loss has reached {running_loss:.2g}"
        return f"{reached}, more than a million times that of chance,"
    if name == _SKIPPED:
        return f"more than {MOST_SKIPPED} segments that were not finite have been skipped"
    return f"{name} is no longer finite"


def after_segment(old: LearnerState, new: LearnerState, sums: Sums) -> Int[Array, ""]:
    """Where a segment found numbers that are not finite: a place in `_places`; -1 for nowhere.

    Args:
      old: the learner's state before the segment.
      new: the state after it.
      sums: of the segment.
    """

    def place() -> Array:
        leaves = [
            *_floats(old, "carry", "parameters").values(),
            *_floats(new, "carry").values(),
            sums.loss,
            sums.gradient_norm,
        ]
        bad = jnp.stack([~jnp.all(jnp.isfinite(x)) for x in leaves])
        return jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32)

    lost = ~jnp.isfinite(sums.loss) | ~jnp.isfinite(sums.gradient_norm)
    return jax.lax.cond(anywhere(lost), place, lambda: jnp.asarray(-1, jnp.int32))


def after_chunk(run: Segments, old: RunState, new: RunState, places: Int[Array, " count"]) -> Found:
    """The first thing that is wrong in a chunk.

    Args:
      run: the run.
      old: its state before the chunk.
      new: its state after it.
      places: from `after_segment`, for every segment.
    """
    known = names(new.learner)
    of_segments, already = _places(new.learner)
    length = (new.step - old.step) // len(places)
    first = jnp.argmax(places >= 0)
    # What was not finite before a segment is so since the end of the segment before it.
    ended = first + ~jnp.asarray(already)[places[first]]
    learner = run.settled(new).learner
    leaves = _floats(learner, *_ordered(learner))
    of_end = np.array([known.index(name) for name in leaves])
    bad = jnp.stack([~jnp.all(jnp.isfinite(leaf)) for leaf in leaves.values()])
    skipped = False if isinstance(new.skipped, tuple) else new.skipped > MOST_SKIPPED
    cases = [
        (places[first] >= 0, old.step + length * ended, jnp.asarray(of_segments)[places[first]]),
        (jnp.any(bad), new.step, jnp.asarray(of_end)[jnp.argmax(bad)]),
        (new.running_loss > run.limit, new.step, known.index(_RUNNING_LOSS)),
        (skipped, new.step, known.index(_SKIPPED)),
    ]
    found = Found(jnp.asarray(-1, jnp.int32), jnp.asarray(-1, jnp.int32))
    for holds, *values in reversed(cases):
        found = Found(
            *(jnp.where(holds, value, x).astype(x.dtype) for value, x in zip(values, found))
        )
    return found


def dropped(
    learn: Learner, old: RunState, new: RunState, sums: Sums, losses: Float[Array, "K B"]
) -> tuple[RunState, Sums]:
    """What a segment leaves behind: as it is if all is finite, else without what it learned.

    Then the parameters and the states of the optimizer and of the credit are those before the segment,
    its losses do not count, and the lanes that are not finite start anew. The other lanes go on.

    Args:
      learn: the learner.
      old: the state before the segment.
      new: the state after it.
      sums: of the segment.
      losses: of each time step and lane.
    """
    shared = ("parameters", "optimizer_state", "credit")
    figures = (sums.loss, sums.gradient_norm)
    bad = ~_all_finite([*figures, *_floats(new.learner, "carry", *shared).values()])

    def without_lost_lanes(state: LearnerState) -> LearnerState:
        lanes = learn.lost(state) | ~jnp.all(jnp.isfinite(losses), axis=0)
        return learn.restart(state, lanes & bad)

    def kept(before: Any, after: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(bad, a, b), before, after)

    empty: dict[str, Any] = {field: () for field in shared}
    lanes = in_place_if(anywhere(bad), without_lost_lanes, new.learner._replace(**empty))
    chosen = {f: kept(getattr(old.learner, f), getattr(new.learner, f)) for f in shared}
    state = new._replace(
        learner=lanes._replace(**chosen),
        losses=kept(old.losses, new.losses),
        running_loss=kept(old.running_loss, new.running_loss),
        skipped=old.skipped + bad,
    )
    return state, kept(jax.tree.map(jnp.zeros_like, sums), sums)


def only_finite(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer that does nothing with a gradient that is not finite.

    For several updates in a segment: the steps after a bad one go on with the parameters before it,
    so what one lane broke does not reach the others.
    """

    def update(gradient: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        updates, new = optimizer.update(gradient, state, parameters)
        good = _all_finite(jax.tree.leaves(gradient))
        updates = jax.tree.map(lambda x: jnp.where(good, x, 0), updates)
        return updates, jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)

    return optax.GradientTransformation(optimizer.init, update)


def _all_finite(arrays: Iterable[Array]) -> Bool[Array, ""]:
    """Whether all arrays and their sums are finite: much cheaper than to test each entry."""
    return jnp.isfinite(sum(jnp.sum(at_least_float32(x)) for x in arrays))


def _places(learner: LearnerState) -> tuple[np.ndarray, np.ndarray]:
    """(index into `names`, whether it was so before the segment) of each place in `after_segment`."""
    known = names(learner)
    before = [*_floats(learner, "carry", "parameters")]
    after = [*_floats(learner, "carry"), _LOSS, _GRADIENT]
    indices = np.array([known.index(name) for name in before + after])
    return indices, np.arange(len(indices)) < len(before)


def _ordered(learner: LearnerState) -> list[str]:
    """The fields of a learner's state; what else is not finite follows from the carry."""
    return ["carry", *(field for field in learner._fields if field != "carry")]


def _floats(learner: LearnerState, *fields: str) -> dict[str, Array]:
    """The leaves of some fields of a learner's state that are not integers, by their paths."""
    found = {}
    for field in fields:
        named, _ = jax.tree_util.tree_flatten_with_path(getattr(learner, field))
        for path, leaf in named:
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                inside = jax.tree_util.keystr(path, simple=True, separator=".")
                found[".".join(filter(None, ("learner", field, inside)))] = leaf
    return found
