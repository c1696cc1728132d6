"""Numbers that are not finite: where in a run they come from, and segments dropped because of them.

After every segment its loss, its gradient, the carry and the parameters are looked at. The states of
the optimizer and of the credit and the influence, which is large, are looked at when the chunk ends:
what is not finite in the influence makes the gradient of the next segment so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from kfrtrl_jax._src.learning.recovery import all_finite, anywhere
from kfrtrl_jax._src.xla import at_least_float32, in_place_if
from kfrtrl_jax.base import Array
from kfrtrl_jax.learning import Learner, LearnerState
from kfrtrl_jax.training.segments import RunState, Segments, Sums

# A run fails when it has skipped more segments than this.
MOST_SKIPPED = 100
# A run fails when its running loss is more than so many times that of chance, or than so much.
TIMES_CHANCE = 1e6

# Arrays of up to so many numbers are tested one by one.
_SMALL = 1024

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


def after_segment(learner: LearnerState) -> Int[Array, ""]:
    """The first of `names` among the carry and the parameters that is not finite; their number if none.

    Small arrays are tested in one pass over all of them, large ones by their sums.
    """
    known = names(learner)
    leaves = _floats(learner, "carry", "parameters")
    tested = {name: x if x.size <= _SMALL else _sum(x)[None] for name, x in leaves.items()}
    finite = jnp.concatenate([jnp.isfinite(jnp.ravel(x)) for x in tested.values()])
    places = [np.full(x.size, known.index(name), np.int32) for name, x in tested.items()]
    return jnp.min(jnp.where(finite, np.int32(len(known)), np.concatenate(places)))


def after_chunk(
    run: Segments, old: RunState, new: RunState, sums: Sums, places: Int[Array, " count"]
) -> Found:
    """The first thing that is wrong in a chunk.

    Args:
      run: the run.
      old: its state before the chunk.
      new: its state after it.
      sums: of every segment.
      places: from `after_segment`, for every segment.
    """
    known = names(new.learner)
    length = (new.step - old.step) // len(places)
    for name, values in ((_LOSS, sums.loss), (_GRADIENT, sums.gradient_norm)):
        here = jnp.where(jnp.isfinite(values), len(known), known.index(name))
        places = jnp.minimum(places, here)
    wrong = places < len(known)
    first = jnp.argmax(wrong)
    learner = run.settled(new).learner
    leaves = _floats(learner, *_ordered(learner))
    bad = jnp.stack([~jnp.all(jnp.isfinite(leaf)) for leaf in leaves.values()])
    of_leaves = jnp.asarray([known.index(name) for name in leaves])
    cases = [
        (wrong[first], old.step + length * (first + 1), places[first]),
        (jnp.any(bad), new.step, of_leaves[jnp.argmax(bad)]),
        (new.running_loss > run.limit, new.step, known.index(_RUNNING_LOSS)),
    ]
    if not isinstance(new.skipped, tuple):
        cases.append((new.skipped > MOST_SKIPPED, new.step, known.index(_SKIPPED)))
    holds, steps, indices = (jnp.stack([jnp.asarray(x) for x in xs]) for xs in zip(*cases))
    case = jnp.argmax(holds)
    return Found(*(jnp.where(holds[case], x[case], -1).astype(jnp.int32) for x in (steps, indices)))


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
    bad = ~all_finite([*figures, *_floats(new.learner, "carry", *shared).values()])

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
        good = all_finite(jax.tree.leaves(gradient))
        updates = jax.tree.map(lambda x: jnp.where(good, x, 0), updates)
        return updates, jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)

    return optax.GradientTransformation(optimizer.init, update)


def _sum(x: Array) -> Array:
    return jnp.sum(at_least_float32(x))


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
