"""A whole training loop: a learner on a task, on arrays, or on whatever yields batches."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src import xla
from kfrtrl_jax._src.base import Array, Batch, Key, Task
from kfrtrl_jax._src.learning.types import Learner, LearnerState, StepMetrics
from kfrtrl_jax._src.tasks.common import observable, observed


class RunState(NamedTuple):
    """Everything that a run carries on.

    Attributes:
      learner: the learner's state; its `parameters` are what was learned.
      task: the task's state; () for data that is given.
      loss: [K], the reported losses of the last segment, which a task may depend on, NaN where none
        counts; () likewise.
      key: a PRNG key for the task; () likewise.
    """

    learner: LearnerState
    task: Any = ()
    loss: Any = ()
    key: Any = ()


def run(
    learner: Learner,
    data: Task | Batch | Iterable[Batch],
    *,
    steps: int | None = None,
    key: Key | None = None,
    state: RunState | None = None,
) -> tuple[RunState, StepMetrics]:
    """Trains a learner, from a key or from where an earlier run ended.

    Args:
      learner: from `make_learner`, for the task's batch size, inputs and loss.
      data: a task, whose batches are drawn on the device; the batches of T time steps in one,
        [T, B, ...]; or what yields segments [K, B, ...], or single batches [B, ...] if K is 1, such as
        a generator that reads a sensor. NumPy arrays are copied: a buffer may be filled again.
      steps: time steps to train for, a multiple of K; for a task it must be given, else None stands for
        all of the data. What yields fewer segments ends the run; the metrics have those that were made.
      key: to start from.
      state: of an earlier run, to go on from instead. Its buffers are reused: keep what this returns.

    Returns:
      The state, and the metrics of all steps: loss and weight [T], gradient_norm of each segment
      [T / K]. Predictions and losses of lanes are left out, (): `Learner.step` has them.

    Raises:
      ValueError: if steps are missing or no multiple of K, if not one of key and state is given, or for
        a segment of wrong shapes or types.
    """
    if (key is None) == (state is None):
        raise ValueError(
            "run needs a key to start from, or the state of an earlier run to go on from"
        )
    length = learner.segment_length
    if steps is not None and (steps < 1 or steps % length):
        raise ValueError(f"steps must be a multiple of segment_length={length}, got {steps}")
    if isinstance(data, Task):
        if steps is None:
            raise ValueError("a task has no end: run needs steps, such as steps=1000")
        if key is not None:
            state = _start(learner, data)(key)
        advance = _on_task(learner.step, data.sample, data.observe, length, steps // length)
        return advance(state)
    if key is not None:
        state = RunState(jax.jit(learner.init)(key))
    assert state is not None
    if isinstance(data, Batch):
        new, metrics = _on_arrays(learner.step)(state.learner, _cut(data, length, steps))
    else:
        new, metrics = _on_stream(learner, state.learner, data, steps)
    return state._replace(learner=new), metrics


def _start(learner: Learner, task: Task) -> Callable[[Key], RunState]:
    @jax.jit
    def start(key: Key) -> RunState:
        learner_key, task_key, key = jax.random.split(key, 3)
        nothing = jnp.full(learner.segment_length, jnp.nan, float)
        return RunState(learner.init(learner_key), task.init(task_key), nothing, key)

    return start


# Programs of the last learners, so that a run which goes on is not compiled again.
@functools.lru_cache(maxsize=8)
def _on_task(
    step: Callable[..., Any],
    sample: Callable[..., Any],
    observe: Callable[..., Any] | None,
    length: int,
    count: int,
) -> xla.FastestJit:
    def draw(state: Any, told: tuple[Key, Array]) -> tuple[Any, Batch]:
        key, loss = told
        return sample(state if observe is None else observed(observe, state, loss), key)

    def segment(state: RunState, _: None) -> tuple[RunState, StepMetrics]:
        key, *keys = jax.random.split(state.key, length + 1)
        task, batches = jax.lax.scan(draw, state.task, (jnp.stack(keys), state.loss))
        learner, metrics = step(state.learner, batches)
        known = observable(metrics.loss, metrics.weight).astype(state.loss.dtype)
        return RunState(learner, task, known, key), _summary(metrics)

    def segments(state: RunState) -> tuple[RunState, StepMetrics]:
        state, metrics = jax.lax.scan(segment, state, length=count)
        return state, _joined(metrics)

    return xla.jit(segments, donate_argnums=0)


@functools.lru_cache(maxsize=8)
def _on_arrays(step: Callable[..., Any]) -> xla.FastestJit:
    def segments(state: LearnerState, data: Batch) -> tuple[LearnerState, StepMetrics]:
        def one(state: LearnerState, segment: Batch) -> tuple[LearnerState, StepMetrics]:
            state, metrics = step(state, segment)
            return state, _summary(metrics)

        state, metrics = jax.lax.scan(one, state, data)
        return state, _joined(metrics)

    return xla.jit(segments, donate_argnums=0)


@functools.lru_cache(maxsize=8)
def _one_segment(step: Callable[..., Any]) -> xla.FastestJit:
    def one(state: LearnerState, segment: Batch) -> tuple[LearnerState, StepMetrics]:
        state, metrics = step(state, segment)
        return state, _summary(metrics)

    return xla.jit(one, donate_argnums=0)


def _on_stream(
    learner: Learner, state: LearnerState, data: Iterable[Batch], steps: int | None
) -> tuple[LearnerState, StepMetrics]:
    step = _one_segment(learner.step)
    count = None if steps is None else steps // learner.segment_length
    found: list[StepMetrics] = []
    for segment in itertools.islice(data, count):
        state, metrics = step(state, jax.tree.map(_copied, segment))
        found.append(metrics)
    if not found:
        raise ValueError("the data that run was given yields no batch")
    return state, _joined(jax.tree.map(lambda *x: jnp.stack(x), *found))


def _cut(data: Batch, length: int, steps: int | None) -> Batch:
    """The batches of T steps as segments, [T / K, K, B, ...]."""
    lengths = {len(x) for x in jax.tree.leaves(data)}
    if len(lengths) > 1:
        raise ValueError(
            f"inputs, targets, reset and weight must have the same number of time steps, got "
            f"{', '.join(map(str, sorted(lengths)))}"
        )
    (total,) = lengths
    count = total if steps is None else steps
    if count > total or count % length:
        raise ValueError(
            f"data of {total} time steps must have as many as steps, a multiple of segment_length="
            f"{length}, got steps={steps}"
        )
    return jax.tree.map(
        lambda x: _copied(x[:count]).reshape(count // length, length, *x.shape[1:]), data
    )


def _copied(x: Any) -> Any:
    """A copy of a NumPy array, which JAX reads in place, maybe after its owner has filled it again."""
    return np.array(x) if isinstance(x, np.ndarray) else x


def _summary(metrics: StepMetrics) -> StepMetrics:
    return metrics._replace(predictions=(), losses=())


def _joined(metrics: StepMetrics) -> StepMetrics:
    """The metrics of segments, [N, K], as those of N K time steps."""
    return metrics._replace(loss=metrics.loss.reshape(-1), weight=metrics.weight.reshape(-1))
