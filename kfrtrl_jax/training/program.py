"""An experiment as pure functions: a whole run is a function of its config and its seed."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import psutil

from kfrtrl_jax import learning, linearization
from kfrtrl_jax._src.lanes import is_key
from kfrtrl_jax.base import Array, Batch, Key, Structure, Task
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.tasks import draw
from kfrtrl_jax.training import composed, evaluation, workdir
from kfrtrl_jax.training import config as configs

DECAY = 0.999
# Fields of configs on which the size of a state depends.
SIZES = ("hidden_size", "rank", "copies", "batch_size")


class RunState(NamedTuple):
    """All that a run carries from one chunk to the next.

    Attributes:
      learner: the learner's state.
      task: the task's state.
      losses: [K], of the last segment's time steps; empty if the task does not depend on them.
      key: a PRNG key.
      step: time steps so far.
      running_loss: exponential average of the loss over time steps.
    """

    learner: learning.LearnerState
    task: Any
    losses: Array
    key: Key
    step: Array
    running_loss: Array


class ChunkMetrics(NamedTuple):
    """The metrics of a chunk; all scalars. Losses are in the unit that the task reports.

    Attributes:
      loss: weighted mean over the chunk; NaN if no loss in it counts.
      score: the task's, likewise.
      running_loss: at its end.
      gradient_norm: mean over the chunk.
      bad_step: the time step at which a loss, a gradient or a state stopped being finite, or -1.
      task: the task's metrics at the end.
      estimator: the diagnostics of the estimator, and of the credit, at the end.
    """

    loss: Array
    score: Array
    running_loss: Array
    gradient_norm: Array
    bad_step: Array
    task: dict[str, Array]
    estimator: dict[str, Array]


class Experiment(NamedTuple):
    """A run as pure functions, none of them jitted yet.

    Attributes:
      init: seed -> state.
      run_chunk: state -> (state, metrics), for `log_every` time steps.
      evaluate: (parameters, stream) -> totals, see `evaluation.totals`.
      structure: of the cell, as passed to its estimator.
      task: what is trained on.
      check: compares the cell's linearization with `jax.vjp`, see `linearization.check`.
    """

    init: Callable[[Any], RunState]
    run_chunk: Callable[[RunState], tuple[RunState, ChunkMetrics]]
    evaluate: Callable[[dict[str, Any], Batch], evaluation.Totals]
    structure: Structure
    task: Task
    check: Callable[[], linearization.Check]


def build(config: Any, floats: Mapping[str, Any] | None = None) -> Experiment:
    """Builds the experiment of a resolved config.

    Args:
      config: from `config.resolve`.
      floats: JAX scalars that replace float fields of the config, by path ("optimizer.learning_rate").
        They may be tracers: that is how one program runs many trials.

    Raises:
      ConfigError: if a factory refuses its arguments.
      DataError: if the task's data is missing or broken.
      UnsupportedCellError: if the cell has no structure that the estimator can use.
    """
    make = functools.partial(configs.make, config, floats=floats)
    task = make("task")
    cell = make("cell", input_size=task.input_size)
    size = composed.output_size(cell, task.input_size, "config.cell")
    readout = make("readout", input_size=size, output_size=task.output_size)
    cell, readout = task.around(cell, readout)
    learn = learning.make_learner(
        cell,
        readout,
        make("estimator"),
        make("optimizer"),
        batch_size=task.batch_size,
        segment_length=config.segment_length,
        update_every=config.update_every,
        window=config.window,
        immediate=config.immediate,
        credit=make("credit"),
        example_input=task.example_input,
        loss=task.loss,
        check=False,
    )
    length = config.segment_length

    def init(seed: Any) -> RunState:
        learner_key, task_key, key = jax.random.split(jax.random.key(seed), 3)
        chance = jnp.asarray(task.chance_loss, float)
        state = RunState(
            learner=learn.init(learner_key),
            task=task.init(task_key),
            losses=jnp.full(length if task.observe else 0, chance),
            key=key,
            step=jnp.zeros((), jnp.int32),
            running_loss=chance,
        )
        return jax.tree.map(_strongly_typed, state)

    def run_segment(state: RunState, _: None) -> tuple[RunState, _Summed]:
        key, *keys = jax.random.split(state.key, length + 1)
        told = state.losses if task.observe else None
        task_state, segment = jax.lax.scan(
            lambda s, x: draw(task, s, *x), state.task, (jnp.stack(keys), told)
        )
        learner_state, metrics = learn.step(state.learner, segment)
        summed = _summed(task, segment, metrics)
        new = RunState(
            learner=learner_state,
            task=task_state,
            losses=metrics.loss if task.observe else state.losses,
            key=key,
            step=state.step + length,
            running_loss=_averaged(state.running_loss, metrics),
        )
        return new, summed

    def run_chunk(state: RunState) -> tuple[RunState, ChunkMetrics]:
        new, summed = jax.lax.scan(run_segment, state, length=config.log_every // length)
        bad = ~(jnp.isfinite(summed.loss) & jnp.isfinite(summed.gradient_norm))
        first = state.step + length * (jnp.argmax(bad) + 1)
        finite = [
            jnp.all(jnp.isfinite(leaf))
            for leaf in jax.tree.leaves(new.learner)
            if jnp.issubdtype(leaf.dtype, jnp.inexact)
        ]
        whole = jnp.where(jnp.all(jnp.stack(finite)), -1, new.step)
        return new, ChunkMetrics(
            loss=jnp.sum(summed.loss) / jnp.sum(summed.weight),
            score=jnp.sum(summed.score) / jnp.sum(summed.weight),
            running_loss=new.running_loss,
            gradient_norm=jnp.mean(summed.gradient_norm),
            bad_step=jnp.where(jnp.any(bad), first, whole),
            task=task.metrics(new.task),
            estimator=learn.diagnostics(new.learner),
        )

    def evaluate(parameters: dict[str, Any], stream: Batch) -> evaluation.Totals:
        lanes = config.eval_lanes
        return evaluation.totals(cell, readout, task, parameters, stream, lanes=lanes)

    def check() -> linearization.Check:
        return linearization.check(cell, task.example_input)

    return Experiment(init, run_chunk, evaluate, learn.linearizer.structure, task, check)


class _Summed(NamedTuple):
    """Sums over a segment's steps and lanes, weighted; gradient_norm is that of its step."""

    loss: Array
    score: Array
    weight: Array
    gradient_norm: Array


def _summed(task: Task, segment: Batch, metrics: learning.StepMetrics) -> _Summed:
    loss = jnp.sum(metrics.weight * metrics.loss)
    score = loss
    if task.score is not None:
        scores = jax.vmap(jax.vmap(task.score.function))(metrics.predictions, segment.targets)
        weight = jnp.ones_like(scores) if segment.weight is None else segment.weight
        score = jnp.sum(jnp.where(weight == 0, 0, weight * scores))
    return _Summed(loss, score, jnp.sum(metrics.weight), metrics.gradient_norm)


def _averaged(running_loss: Array, metrics: learning.StepMetrics) -> Array:
    """The running loss after a segment; steps in which no loss counts leave it as it is."""
    counted = (metrics.weight > 0).astype(running_loss.dtype)
    later = jnp.sum(counted) - jnp.cumsum(counted)
    weights = (1 - DECAY) * DECAY**later * counted
    return DECAY ** jnp.sum(counted) * running_loss + weights @ metrics.loss


def memory_available() -> int:
    """Bytes that the first device can hold; for a CPU, the memory that the system has available."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit", 0)) or psutil.virtual_memory().available


def memory_needed(experiment: Experiment) -> tuple[int, int]:
    """Bytes of two copies of a run's state, the old and the new one, and the estimator's share."""
    state = jax.eval_shape(lambda: jax.tree.map(_without_key, experiment.init(0)))
    return 2 * _bytes(state), 2 * _bytes(state.learner.influence)


def check_memory(experiment: Experiment, config: Any) -> None:
    """Refuses a run whose state cannot fit in memory, without compiling or allocating anything.

    Raises:
      ConfigError: with the memory needed, the memory available, and the estimator's share.
    """
    (needed, share), available = memory_needed(experiment), memory_available()
    if needed > available:
        flat = workdir.flatten(config.to_dict())
        sizes = [path for path in flat if path.rpartition(".")[2] in SIZES]
        raise ConfigError(
            f"the run's state needs {_size(needed)} and {_size(available)} are available; estimator "
            f"{configs.shown(config, 'estimator')} takes {_size(share)} of it, so choose another, or "
            f"smaller fields such as {', '.join(sizes)}"
        )


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"


def _without_key(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def _strongly_typed(leaf: Any) -> Any:
    """The same array without a weak type, as restored checkpoints have none."""
    return leaf if is_key(leaf) else jax.lax.convert_element_type(leaf, leaf.dtype)
