"""The loss on held-out streams, with the state carried from the first step to the last."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.lanes import along, initial_lanes, restarted
from kfrtrl_jax.base import Array, Batch, Cell, Readout, Task
from kfrtrl_jax.learning import predict


class Totals(NamedTuple):
    """Weighted sums over the lanes that read at the same time.

    Attributes:
      loss: [T], in the reported unit.
      score: [T], the task's score; its loss, if it has none.
      weight: [T], the sums of the weights.
    """

    loss: Array
    score: Array
    weight: Array


class Means(NamedTuple):
    """The weighted means over a stream, each a number or one for every trial."""

    loss: Any
    score: Any


def totals(
    cell: Cell,
    readout: Readout,
    task: Task,
    parameters: dict[str, Any],
    stream: Batch,
    *,
    lanes: int = 1,
    warm_up: int = 200,
) -> Totals:
    """The losses and scores of a stream, each step predicted exactly once.

    The stream is cut into contiguous stretches, one per lane, which are read in parallel. A lane first
    reads the `warm_up` steps before its stretch, whose losses do not count. One lane is the exact
    protocol: the whole stream in order.

    Args:
      cell: the cell.
      readout: from its output to predictions.
      task: its loss and score.
      parameters: {"cell": ..., "readout": ...}.
      stream: one lane, [N, ...]; it starts anew at its first step.
      lanes: at most N are used.
      warm_up: steps that a lane reads before its stretch.
    """
    stream = on_device(stream)
    count = stream.reset.shape[0]
    lanes = min(lanes, count)
    stretch = -(-count // lanes)
    warm_up = warm_up if lanes > 1 else 0
    starts = stretch * jnp.arange(lanes)
    initial = initial_lanes(cell, lanes)

    def step(carry: Any, time: Array) -> tuple[Any, Totals]:
        positions = starts + time
        here = jnp.clip(positions, 0, count - 1)
        batch = jax.tree.map(lambda x: _taken(x, here), stream)
        start = restarted(cell, carry, batch.reset & (positions >= 0))
        new, predictions = jax.vmap(lambda c, x: predict(cell, readout, parameters, c, x))(
            start, batch.inputs
        )
        counted = (time >= 0) & (positions < count)
        weight = counted * (1.0 if batch.weight is None else batch.weight)
        # Before the start of the stream there is nothing to read, and the lane keeps its carry.
        begun = positions >= 0
        carry = jax.tree.map(lambda a, b: jnp.where(along(begun, a), a, b), new, start)

        losses = task.loss.scale * jax.vmap(task.loss.function)(predictions, batch.targets)
        score = loss = weighted_sum(weight, losses)
        if task.score is not None:
            scores = jax.vmap(task.score.function)(predictions, batch.targets)
            score = weighted_sum(weight, scores)
        return carry, Totals(loss, score, jnp.sum(weight))

    _, sums = jax.lax.scan(step, initial, jnp.arange(-warm_up, stretch))
    return sums


def weighted_sum(weight: Array, values: Array) -> Array:
    """The sum of weight * values; what has no weight may be anything."""
    return jnp.sum(jnp.where(weight == 0, 0, weight * values))


def means(totals: Any) -> Any:
    """The means of totals [..., T], summed in float64: `Means` of arrays [...]."""
    loss, score, weight = (np.sum(np.asarray(x), axis=-1, dtype=np.float64) for x in totals)
    return Means(loss / weight, score / weight)


def on_device(stream: Batch) -> Batch:
    """A stream as arrays on the device."""
    return jax.tree.map(jnp.asarray, stream)


def _taken(x: Array, positions: Array) -> Array:
    """The steps at positions; tokens, which may be kept in few bytes, as int32."""
    taken = x[positions]
    return taken.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.integer) else taken
