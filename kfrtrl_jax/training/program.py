"""An experiment as pure functions: a whole run is a function of its config and its seed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.lanes import is_key
from kfrtrl_jax.base import Array
from kfrtrl_jax.control import Control
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import segments
from kfrtrl_jax.training.acting import make_acting
from kfrtrl_jax.training.segments import About, RunState, Segments
from kfrtrl_jax.training.supervised import make_supervised


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
      about: what does not change during the run.
    """

    init: Callable[[Any], RunState]
    run_chunk: Callable[[RunState], tuple[RunState, ChunkMetrics]]
    about: About


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
    return make_builder(config)(floats)


def make_builder(config: Any) -> Callable[..., Experiment]:
    """`build` for one config and any number of floats.

    What a section describes is made once, and its data read once, unless one of the floats is in it.
    """
    made: dict[str, Any] = {}

    def make(section: str, floats: Mapping[str, Any], **supplied: Any) -> Any:
        own = {path: value for path, value in floats.items() if path.startswith(f"{section}.")}
        if own:
            return configs.make(config, section, own, **supplied)
        if section not in made:
            # What is made while JAX traces a function holds that function's values as constants.
            with jax.ensure_compile_time_eval():
                made[section] = configs.make(config, section, **supplied)
        return made[section]

    def built(floats: Mapping[str, Any] | None = None) -> Experiment:
        own_make = functools.partial(make, floats=floats or {})
        task = own_make("task")
        kind = make_acting if isinstance(task, Control) else make_supervised
        run = kind(config, task, own_make)

        def init(seed: Any) -> RunState:
            return jax.tree.map(_strongly_typed, run.init(jax.random.key(seed)))

        def run_chunk(state: RunState) -> tuple[RunState, ChunkMetrics]:
            return _run_chunk(run, state, config.log_every // config.segment_length)

        return Experiment(init, run_chunk, run.about)

    return built


def _run_chunk(run: Segments, state: RunState, count: int) -> tuple[RunState, ChunkMetrics]:
    """Runs `count` segments."""
    new, sums = jax.lax.scan(lambda s, _: run.advance(s), state, length=count)
    length = (new.step - state.step) // count
    bad = ~(jnp.isfinite(sums.loss) & jnp.isfinite(sums.gradient_norm))
    first = state.step + length * (jnp.argmax(bad) + 1)
    finite = [
        jnp.all(jnp.isfinite(leaf))
        for leaf in jax.tree.leaves(new.learner)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    whole = jnp.where(jnp.all(jnp.stack(finite)), -1, new.step)
    return new, ChunkMetrics(
        loss=segments.mean(sums.loss, sums.weight),
        score=segments.mean(sums.score, sums.score_weight),
        running_loss=new.running_loss,
        gradient_norm=jnp.mean(sums.gradient_norm),
        bad_step=jnp.where(jnp.any(bad), first, whole),
        task=run.metrics(new),
        estimator=run.diagnostics(new),
    )


def _strongly_typed(leaf: Any) -> Any:
    """The same array without a weak type, as restored checkpoints have none."""
    return leaf if is_key(leaf) else jax.lax.convert_element_type(leaf, leaf.dtype)
