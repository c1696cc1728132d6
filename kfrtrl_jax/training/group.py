"""Runs that differ only in seed and floats, as one program; a run alone is a group of one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.lanes import varying_axes
from kfrtrl_jax.learning import evaluated_parameters
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import evaluation, workdir
from kfrtrl_jax.training.program import ChunkMetrics, Experiment, build, make_builder
from kfrtrl_jax.training.segments import About, RunState
from kfrtrl_jax.training.sharding import devices_of, spread


class SideBySide(NamedTuple):
    """The states of several runs.

    Attributes:
      runs: with a leading axis of runs in all arrays.
      floats: the floats in which they differ, [runs] each, by path in the config.
    """

    runs: RunState
    floats: dict[str, Any]


class Group(NamedTuple):
    """One or more runs as pure functions, none of them jitted yet.

    All arrays have a leading axis of runs, unless there is only one run.

    Attributes:
      size: the number of runs.
      init: () -> state.
      run_chunk: state -> (state, metrics), for `log_every` time steps.
      runs: state -> the states of the runs.
      evaluate: (parameters, stream) -> totals, see `evaluation.totals`.
      about: what does not change during the runs.
      devices: over which they are spread.
      lane_axes: () -> the axis of the lanes in each array of the state of a run alone, -1 for none.
    """

    size: int
    init: Callable[[], Any]
    run_chunk: Callable[[Any], tuple[Any, ChunkMetrics]]
    runs: Callable[[Any], RunState]
    evaluate: Callable[[Any, Any], evaluation.Totals]
    about: About
    devices: int = 1
    lane_axes: Callable[[], Any] | None = None

    def placed(self, tree: Any) -> Any:
        """Where the arrays of a tree lie on the devices, see `sharding.spread`; None for one device.

        Args:
          tree: the group's state, or a dict of it under "state" and of other trees. What is no state of
            a run alone lies whole on each device.
        """
        if self.devices == 1:
            return None
        if self.size > 1:
            return spread(jax.tree.map(lambda _: 0, tree), self.devices)
        axes = jax.tree.map(lambda _: -1, tree)
        if self.lane_axes is not None:
            axes = {**axes, "state": self.lane_axes()} if "state" in tree else self.lane_axes()
        return spread(axes, self.devices)

    def learned(self, state: Any) -> Any:
        """The parameters of the cell and the readout, as they are evaluated and written."""
        return evaluated_parameters(self.runs(state).learner)

    def part(self, tree: Any, number: int) -> Any:
        """The part of one of the runs in a tree of this group's arrays."""
        return tree if self.size == 1 else jax.tree.map(lambda x: x[number], tree)

    def better(self, improved: Sequence[bool], parameters: Any, best: Any) -> Any:
        """A copy of the parameters of the runs that have improved, and of the best of the others."""
        chosen = jnp.asarray(improved[0] if self.size == 1 else improved)

        def leaf(new: Any, old: Any) -> Any:
            return jnp.where(
                chosen.reshape(chosen.shape + (1,) * (new.ndim - chosen.ndim)), new, old
            )

        return jax.tree.map(leaf, parameters, best)


def make_group(runs: Sequence[Any], base: Experiment | None = None) -> Group:
    """The group of resolved configs that `alike` says one program can run.

    Args:
      runs: the configs.
      base: an experiment of such a config that has been built already; it serves if its floats and
        devices are those of the first.

    Raises:
      ConfigError, DataError, UnsupportedCellError: see `program.build`.
    """
    devices = devices_of_lanes(runs[0]) if len(runs) == 1 else 1
    build_at = make_builder(runs[0], devices)
    if base is None or (base.floats, base.devices) != (configs.floats_of(runs[0]), devices):
        base = build_at()
    if len(runs) == 1:
        return Group(
            size=1,
            init=lambda: base.init(runs[0].seed),
            run_chunk=base.run_chunk,
            runs=lambda state: state,
            evaluate=base.about.evaluate,
            about=base.about,
            devices=devices,
            lane_axes=functools.cache(functools.partial(_lane_axes, runs[0], base)),
        )
    values = [configs.floats_of(run) for run in runs]
    # Floats that all runs share stay constants of the program.
    floats = {
        path: np.asarray([own[path] for own in values])
        for path in values[0]
        if len({own[path] for own in values}) > 1
    }
    seeds = np.asarray([run.seed for run in runs], np.uint32)

    def points() -> dict[str, Any]:
        return {path: jnp.asarray(own) for path, own in floats.items()}

    def init() -> SideBySide:
        states = jax.vmap(lambda seed, point: build_at(point).init(seed))(
            jnp.asarray(seeds), points()
        )
        return SideBySide(states, points())

    def run_chunk(state: SideBySide) -> tuple[SideBySide, ChunkMetrics]:
        runs, metrics = jax.vmap(lambda s, point: build_at(point).run_chunk(s))(*state)
        return state._replace(runs=runs), metrics

    def evaluate(parameters: Any, stream: Any) -> evaluation.Totals:
        def of_one(own: Any, point: Mapping[str, Any]) -> evaluation.Totals:
            return build_at(point).about.evaluate(own, stream)

        return jax.vmap(of_one)(parameters, points())

    return Group(
        size=len(runs),
        init=init,
        run_chunk=run_chunk,
        runs=lambda state: state.runs,
        evaluate=evaluate,
        about=base.about,
        devices=devices_of(runs[0], len(runs), "trials side by side"),
    )


def devices_of_lanes(run: Any) -> int:
    """The number of devices over which the lanes of a run alone are spread, see `devices_of`."""
    return devices_of(run, run.task.get("batch_size", 1), "lanes")


def _lane_axes(run: Any, experiment: Experiment) -> Any:
    """The axis of the lanes in each array of a run's state: the one that grows with their number."""
    more = configs.resolve(run, {"task.batch_size": run.task.batch_size + 1, "init_from": ""})
    shapes, larger = (
        jax.eval_shape(lambda built=built: built.init(0)) for built in (experiment, build(more))
    )
    return varying_axes(shapes, larger)


def alike(run: Any) -> str:
    """What configs have in common that one program can run: all but the seed and floats, as text."""
    flat: Mapping[str, Any] = workdir.flatten(run.to_dict())
    varying = configs.float_fields(run) | {"seed"}
    return workdir.as_text({name: value for name, value in flat.items() if name not in varying})
