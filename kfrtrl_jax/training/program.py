"""An experiment as pure functions: a whole run is a function of its config and its seed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from kfrtrl_jax._src.lanes import is_key
from kfrtrl_jax.base import Array
from kfrtrl_jax.control import Control
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import memory, nonfinite, segments, starting
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
      bad_step: the time step after which a loss, a gradient or a state was not finite for the first
        time, or at which the run has failed otherwise; -1 for none.
      bad_leaf: what that was, see `nonfinite.names`; -1 for nothing.
      task: the task's metrics at the end, and `skipped`, if segments can be skipped.
      estimator: the diagnostics of the estimator, and of the credit, at the end.
    """

    loss: Array
    score: Array
    running_loss: Array
    gradient_norm: Array
    bad_step: Array
    bad_leaf: Array
    task: dict[str, Array]
    estimator: dict[str, Array]


class Experiment(NamedTuple):
    """A run as pure functions, none of them jitted yet.

    Attributes:
      init: seed -> state.
      run_chunk: state -> (state, metrics), for `log_every` time steps.
      about: what does not change during the run.
      floats: the float fields of its config, see `config.floats_of`; None if some are tracers.
      devices: over which the lanes may be spread.
      supplied: the arguments beside the config that each section was made with, such as a cell's
        input_size.
    """

    init: Callable[[Any], RunState]
    run_chunk: Callable[[RunState], tuple[RunState, ChunkMetrics]]
    about: About
    floats: Mapping[str, Any] | None = None
    devices: int = 1
    supplied: Mapping[str, Mapping[str, Any]] = {}


def build(config: Any, floats: Mapping[str, Any] | None = None, devices: int = 1) -> Experiment:
    """Builds the experiment of a resolved config.

    Args:
      config: from `config.resolve`.
      floats: JAX scalars that replace float fields of the config, by path ("optimizer.learning_rate").
        They may be tracers: that is how one program runs many trials.
      devices: over which the lanes will be spread.

    Raises:
      ConfigError: if a factory refuses its arguments, or if the parameters to start from do not fit.
      DataError: if the task's data is missing or broken.
      UnsupportedCellError: if the cell has no structure that the estimator can use.
    """
    return make_builder(config, devices)(floats)


def check_floats(config: Any, experiment: Experiment) -> None:
    """Refuses a config with floats that a factory refuses, as `build` would.

    Beside the experiment's own, in one program, they would be tracers, whose values no factory sees.

    Args:
      config: resolved, like that of the experiment but for the seed and floats.
      experiment: built of a config.

    Raises:
      ConfigError: from the factory.
    """
    values, known = configs.floats_of(config), experiment.floats or {}
    others = {path.partition(".")[0] for path in values if values[path] != known.get(path)}
    for section in others & experiment.supplied.keys():
        configs.make(config, section, **experiment.supplied[section])


def make_builder(config: Any, devices: int = 1) -> Callable[..., Experiment]:
    """`build` for one config and any number of floats.

    What a section describes is made once, and its data read once, unless one of the floats is in it.
    """
    made: dict[str, Any] = {}
    given: dict[str, Mapping[str, Any]] = {}
    start = starting.read(config.init_from)

    def make(section: str, floats: Mapping[str, Any], **supplied: Any) -> Any:
        own = {path: value for path, value in floats.items() if path.startswith(f"{section}.")}
        if own:
            return configs.make(config, section, own, **supplied)
        given[section] = supplied
        if section not in made:
            # What is made while JAX traces a function holds that function's values as constants.
            with jax.ensure_compile_time_eval():
                made[section] = configs.make(config, section, **supplied)
        return made[section]

    def built(floats: Mapping[str, Any] | None = None) -> Experiment:
        own_make = functools.partial(make, floats=floats or {})
        with memory.exhausted():
            task = own_make("task")
            if not floats:
                memory.check_before(config, task, own_make, lambda *parts: _segments(*parts).init)
            run = _segments(config, task, own_make, devices, start)

        def init(seed: Any) -> RunState:
            return jax.tree.map(_strongly_typed, run.init(jax.random.key(seed)))

        def run_chunk(state: RunState) -> tuple[RunState, ChunkMetrics]:
            return _run_chunk(run, state, config.log_every // config.segment_length)

        about = run.about if start is None else run.about._replace(init_from=start.digest)
        known = None if floats else configs.floats_of(config)
        return Experiment(init, run_chunk, about, known, devices, given)

    return built


def _segments(
    config: Any,
    task: Any,
    make: Callable[..., Any],
    devices: int = 1,
    start: starting.Start | None = None,
) -> Segments:
    if isinstance(task, Control):
        return make_acting(config, task, make, start)
    return make_supervised(config, task, make, devices, start)


def _run_chunk(run: Segments, state: RunState, count: int) -> tuple[RunState, ChunkMetrics]:
    """Runs `count` segments."""

    def one(old: RunState, _: None) -> tuple[RunState, Any]:
        new, sums = run.advance(old)
        return new, (sums, nonfinite.after_segment(new.learner))

    new, (sums, places) = jax.lax.scan(one, state, length=count)
    found = nonfinite.after_chunk(run, state, new, sums, places)
    return new, ChunkMetrics(
        loss=segments.mean(sums.loss, sums.weight),
        score=segments.mean(sums.score, sums.score_weight),
        running_loss=new.running_loss,
        gradient_norm=segments.mean(sums.gradient_norm, sums.counts),
        bad_step=found.step,
        bad_leaf=found.leaf,
        task=run.metrics(new),
        estimator=run.diagnostics(new),
    )


def _strongly_typed(leaf: Any) -> Any:
    """The same array without a weak type, as restored checkpoints have none."""
    return leaf if is_key(leaf) else jax.lax.convert_element_type(leaf, leaf.dtype)
