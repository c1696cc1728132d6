"""Experiments on tasks: every segment is drawn, and learned from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kfrtrl_jax import learning, linearization
from kfrtrl_jax._src.compositions import composed
from kfrtrl_jax._src.tasks.common import observable
from kfrtrl_jax.base import Array, Batch, Cell, Readout, Task
from kfrtrl_jax.tasks import draw
from kfrtrl_jax.training import evaluation, nonfinite
from kfrtrl_jax.training.segments import (
    About,
    RunState,
    Segments,
    Sums,
    Words,
    averaged,
    learning_rate,
)
from kfrtrl_jax.training.starting import Start


def make_supervised(
    config: Any,
    task: Task,
    make: Callable[..., Any],
    devices: int = 1,
    start: Start | None = None,
) -> Segments:
    """The run of a learner on a task.

    Args:
      config: the resolved config.
      task: of its section.
      make: (section, **supplied) -> what the section names.
      devices: over which the lanes will be spread.
      start: the parameters to start from.
    """
    cell, readout = make_network(task, make)
    if start is not None:
        cell, readout = start.network(cell, readout)
    length, skips = config.segment_length, config.on_nonfinite == "skip"
    optimizer = make("optimizer")
    if skips and config.update_every < length:
        optimizer = nonfinite.only_finite(optimizer)
    learn = learning.make_learner(
        cell,
        readout,
        make("estimator"),
        optimizer,
        batch_size=task.batch_size,
        segment_length=length,
        update_every=config.update_every,
        window=config.window,
        immediate=config.immediate,
        credit=make("credit"),
        example_input=task.example_input,
        loss=task.loss,
        check=False,
        lane_groups=devices,
    )

    def init(key: Array) -> RunState:
        learner_key, task_key, key = jax.random.split(key, 3)
        chance = jnp.asarray(task.chance_loss, float)
        return RunState(
            learner=learn.init(learner_key),
            task=task.init(task_key),
            losses=jnp.full(length if task.observe else 0, jnp.nan, chance.dtype),
            key=key,
            step=jnp.zeros((), jnp.int32),
            running_loss=chance,
            skipped=jnp.zeros((), jnp.int32) if skips else (),
        )

    def advance(state: RunState) -> tuple[RunState, Sums]:
        keys = jax.random.split(state.key, length + 1)
        known = state.losses if task.observe else None
        task_state, segment = jax.lax.scan(
            lambda s, x: draw(task, s, *x), state.task, (keys[1:], known)
        )
        learner_state, metrics = learn.step(state.learner, segment)
        new = state._replace(
            learner=learner_state,
            task=task_state,
            losses=observable(metrics.loss, metrics.weight) if task.observe else state.losses,
            key=keys[0],
            step=state.step + length,
            running_loss=averaged(state.running_loss, metrics.loss, metrics.weight),
        )
        sums = _sums(task, segment, metrics)
        return nonfinite.dropped(learn, state, new, sums, metrics.losses) if skips else (new, sums)

    def named(state: RunState) -> dict[str, Array]:
        skipped = {"skipped": state.skipped} if skips else {}
        return {**task.metrics(state.task), **skipped, **learning_rate(state)}

    def settled(state: RunState) -> RunState:
        if not skips:
            return state
        return state._replace(learner=learn.restart(state.learner, learn.lost(state.learner)))

    def evaluate(parameters: dict[str, Any], stream: Batch) -> evaluation.Totals:
        lanes = config.eval_lanes
        return evaluation.totals(cell, readout, task, parameters, stream, lanes=lanes)

    return Segments(
        init=init,
        advance=advance,
        metrics=named,
        diagnostics=lambda state: learn.diagnostics(state.learner),
        about=About(
            evaluate=evaluate,
            structure=learn.linearizer.structure,
            words=_words(task),
            held_out=task.held_out,
            check=lambda: linearization.check(cell, task.example_input),
            data=task.data,
        ),
        limit=nonfinite.TIMES_CHANCE * max(1.0, task.chance_loss),
        settled=settled,
    )


def make_network(task: Task, make: Callable[..., Any]) -> tuple[Cell, Readout]:
    """The cell and the readout of a config, for a task."""
    cell = make("cell", input_size=task.input_size)
    size = composed.output_size(cell, task.input_size, "config.cell")
    readout = make("readout", input_size=size, output_size=task.output_size)
    return task.around(cell, readout)


def _sums(task: Task, segment: Batch, metrics: learning.StepMetrics) -> Sums:
    loss = jnp.sum(metrics.weight * metrics.loss)
    score, weight = loss, jnp.sum(metrics.weight)
    if task.score is not None:
        scores = jax.vmap(jax.vmap(task.score.function))(metrics.predictions, segment.targets)
        own = jnp.ones_like(scores) if segment.weight is None else segment.weight
        score = evaluation.weighted_sum(own, scores)
    return Sums(loss, weight, score, weight, metrics.gradient_norm)


def _words(task: Task) -> Words:
    if task.score is None:
        return Words(task.loss.unit)
    return Words(task.loss.unit, task.score.name, task.score.higher_is_better)
