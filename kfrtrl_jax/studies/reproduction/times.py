"""What a time step of each method takes, when it runs alone and all take turns.

The runs of a study go on beside other work, for hours, several as one program; the times of their logs
say little of what a method costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from kfrtrl_jax._src import xla
from kfrtrl_jax.studies.benchmarking.timing import median
from kfrtrl_jax.studies.reproduction.study import Study
from kfrtrl_jax.training import sweep, workdir
from kfrtrl_jax.training.program import build

_FILE = "times.json"
# A stretch of steps that a clock can tell, of the cheapest method too; a multiple of all blocks.
_STEPS = 400


def measure(study: Study, common: Mapping[str, Any], rounds: int = 5) -> dict[str, float]:
    """Milliseconds that a time step of each method takes, on the task of the study's config.

    In each round every method trains for some hundred steps; the median over the rounds counts.

    Args:
      study: at the scale of which the methods are taken.
      common: overrides of all trials.
      rounds: how often each is timed.
    """
    methods = dict.fromkeys(study.method_of(overrides) for overrides in study.trials)
    chunks = {name: _chunk(study, study.methods[name], common) for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, chunk in chunks.items():
            start = time.perf_counter()
            jax.block_until_ready(chunk())
            seconds[name].append(time.perf_counter() - start)
    return {name: round(1000 * median(own) / _STEPS, 5) for name, own in seconds.items()}


def write(folder: Path, measured: Mapping[str, float]) -> None:
    """Keeps what was measured in the folder of the study's sweep."""
    workdir.write_document(folder / _FILE, dict(measured))


def read(folder: Path) -> dict[str, float]:
    """What was measured; none if nothing was.

    Raises:
      DamagedError: if the file is not as it was written.
    """
    path = folder / _FILE
    return workdir.read_document(path) if path.exists() else {}


def _chunk(
    study: Study, overrides: Mapping[str, Any], common: Mapping[str, Any]
) -> Callable[[], Any]:
    """Some hundred steps from the initial state, compiled and run once."""
    own = {**overrides, "num_steps": _STEPS, "log_every": _STEPS}
    (config,) = sweep.resolve(study.config, [own], dict(common))
    experiment = build(config)
    state = experiment.init(config.seed)
    run = xla.jit(experiment.run_chunk)
    jax.block_until_ready(run(state))
    return lambda: run(state)
