"""What a time step of each method takes, when it runs alone and all take turns.

The runs of a study go on beside other work, for hours, several as one program, on several machines; the
times of their logs say little of what a method costs.
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
from kfrtrl_jax.training import made_with, sweep, workdir
from kfrtrl_jax.training.program import build

_FILE = "times.json"
# What a record has of them: milliseconds by method, and where.
FIELDS = ("times", "timed_on")
# A chunk has enough steps for the start of a program not to count, and few where steps are slow. It is
# repeated until a clock can tell its time.
_STEPS, _FEW_STEPS = 400, 40
_LEAST_SECONDS = 0.2


def measure(
    study: Study,
    common: Mapping[str, Any],
    rounds: int = 5,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Milliseconds that a time step of each method takes, on the task of the study's config.

    In each round every method trains for a while; the median over the rounds counts.

    Args:
      study: at the scale of which the methods are taken.
      common: overrides of all trials.
      rounds: how often each is timed.
      say: gets a line for each method that is compiled, and for each round.
    """
    methods = dict.fromkeys(study.method_of(overrides) for overrides in study.trials)
    steps = {}
    for position, name in enumerate(methods, 1):
        say(f"compiling {name}, {position} of {len(methods)}")
        steps[name] = _train(study, study.methods[name], common)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for position in range(1, rounds + 1):
        say(f"timing all in turns, round {position} of {rounds}")
        for name, train in steps.items():
            seconds[name].append(_seconds_per_step(train))
    return {name: round(1000 * median(own), 5) for name, own in seconds.items()}


def write(folder: Path, measured: Mapping[str, float]) -> None:
    """Keeps what was measured in this process in the folder of the study's sweep."""
    workdir.write_document(folder / _FILE, {"times": dict(measured), "timed_on": machine()})


def read(folder: Path) -> dict[str, Any]:
    """What was measured and where, by FIELDS; empty if nothing was.

    Raises:
      DamagedError: if the file is not as it was written.
    """
    path = folder / _FILE
    return workdir.read_document(path) if path.exists() else {}


def of(record: Mapping[str, Any]) -> dict[str, float]:
    """The milliseconds of a study's record, by method; empty if it has not been timed."""
    return dict(record.get("times", {}))


def machine() -> str:
    """Where this process computes, in words."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return str(device.device_kind)
    return f"{made_with.processor()}, cores used: {made_with.cores()}"


def _seconds_per_step(train: Callable[[], int]) -> float:
    start, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < _LEAST_SECONDS:
        steps += train()
    return spent / steps


def _train(
    study: Study, overrides: Mapping[str, Any], common: Mapping[str, Any]
) -> Callable[[], int]:
    """A chunk of steps from the initial state, compiled and run once; it gives how many they are."""
    few = _chunk(study, overrides, common, _FEW_STEPS)
    start = time.perf_counter()
    few()
    is_slow = time.perf_counter() - start > _LEAST_SECONDS
    return few if is_slow else _chunk(study, overrides, common, _STEPS)


def _chunk(
    study: Study, overrides: Mapping[str, Any], common: Mapping[str, Any], least: int
) -> Callable[[], int]:
    block = overrides.get("segment_length", study.config.get("segment_length", 1))
    steps = -(-least // block) * block
    own = {**overrides, "num_steps": steps, "log_every": steps, "eval_every": 0}
    (config,) = sweep.resolve(study.config, [own], dict(common))
    experiment = build(config)
    state = jax.jit(experiment.init)(config.seed)
    run = xla.jit(experiment.run_chunk)

    def train() -> int:
        jax.block_until_ready(run(state))
        return steps

    train()
    return train
