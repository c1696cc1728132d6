"""Runs as the tables and pictures want them: ours from the records, others' from public logs."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kfrtrl_jax._src.compositions import notation
from kfrtrl_jax.studies.reproduction import times
from kfrtrl_jax.studies.reproduction.study import Extent, full_extents

# Of the public logs: every 100,000 steps, T* at two steps before, and the validation loss.
EARLY = "ok_copy_early.csv"
CURVES = "ok_copy_and_ptb_curves.csv"
VALIDATION = "ok_ptb_validation.csv"
SOURCE = "logs of Benzing et al. (2019)"
_STEPS_PER_EVALUATION = 10_000

Series = dict[str, dict[int, float]]


class Run(NamedTuple):
    """One run, finished or not.

    Attributes:
      method: by its name in the study.
      task: by its name in configs.
      seed: of the run.
      status: "done", "running" or "diverged"; "public" for a log of others.
      series: figures by step, for each field of `metrics.jsonl` and "wall_time", in seconds; if the
        study has been timed, that is the step times `ms_per_step`.
      cell: by its name in configs; "" if unknown.
      lanes: B; 0 if unknown.
      planned_steps: at which it ends; 0 if unknown.
      full: what the full scale of the study has of its method; None if unknown.
      ms_per_step: what a step takes alone, all methods taking turns, if the study has been timed; else
        the median over the run, which may have had others beside it; 0 if unknown, such as of a method
        that was not among those timed.
      bytes_per_lane: that one more lane adds to the state; 0 if unknown.
      command: that makes it; "" for a log of others.
      overrides: of the study's config.
      results: of a finished run, such as test_loss.
    """

    method: str
    task: str
    seed: int
    status: str
    series: Series
    cell: str = ""
    lanes: int = 0
    planned_steps: int = 0
    full: Extent | None = None
    ms_per_step: float = 0.0
    bytes_per_lane: int = 0
    command: str = ""
    overrides: Mapping[str, Any] = {}
    results: Mapping[str, Any] = {}

    @property
    def steps(self) -> int:
        """The last step of which a figure is known."""
        return max((max(values) for values in self.series.values() if values), default=0)


def of_record(record: Mapping[str, Any]) -> list[Run]:
    """The runs of a study's record, see `records.collect`."""
    full = full_extents(record["study"])
    return [_of_trial(record, trial, full.get(trial["method"])) for trial in record["trials"]]


def _of_trial(record: Mapping[str, Any], trial: Mapping[str, Any], full: Extent | None) -> Run:
    series, timed = _series(trial["curve"]), times.of(record)
    ms_per_step = timed.get(trial["method"], 0.0) if timed else trial["ms_per_step"]
    if timed:
        series["wall_time"] = (
            {step: step * ms_per_step / 1000 for step in trial["curve"]["step"]}
            if ms_per_step
            else {}
        )
    return Run(
        method=trial["method"],
        task=trial["task"],
        seed=trial["overrides"].get("seed", 0),
        status=trial["status"],
        series=series,
        cell=trial["cell"],
        lanes=trial["lanes"],
        planned_steps=trial["planned_steps"],
        full=full,
        ms_per_step=ms_per_step,
        bytes_per_lane=trial["bytes_per_lane"],
        command=command(record["config"], trial["overrides"], trial["planned_steps"]),
        overrides=trial["overrides"],
        results={key: trial[key] for key in ("best_valid_loss", "test_loss") if key in trial},
    )


def of_public_logs(folder: Path, study: str) -> list[Run]:
    """The public runs of a study, one per estimator and seed; none for a study without logs.

    Args:
      folder: of their tables; one that is not there is left out.
      study: "copy" or "ptb".
    """
    found: dict[tuple[str, str], Series] = {}

    def add(row: Mapping[str, str], field: str, step: int, value: str) -> None:
        series = found.setdefault((row["estimator"], row["seed"]), {})
        series.setdefault(field, {})[step] = float(value)

    for row in [*_rows(folder / CURVES), *_rows(folder / EARLY)]:
        if row["task"] == study:
            if row.get("train_bpc_ema"):
                add(row, "running_loss", int(row["step"]), row["train_bpc_ema"])
            if study == "copy":
                add(row, "sequence_length", int(row["step"]), row["T"])
    if study == "ptb":
        for row in _rows(folder / VALIDATION):
            step = int(row["eval_index"]) * _STEPS_PER_EVALUATION
            add(row, "valid_loss", step, row["val_bpc"])
    return [
        Run(f"{_method(estimator)}, {SOURCE}", study, int(seed), "public", series)
        for (estimator, seed), series in found.items()
    ]


def command(config: str, overrides: Mapping[str, Any], steps: int) -> str:
    """The command that makes a run alone."""
    fields = {**overrides, "num_steps": steps}
    options = [f"--config.{path}={written(value)}" for path, value in fields.items()]
    words = ["kfrtrl", "train", f"--config={config}", *options]
    return shlex.join([*words, "--workdir=runs/one"])


def written(value: Any) -> str:
    """A value as it is given on a command line, with all digits."""
    if isinstance(value, list | tuple):
        # With double quotes, which a shell leaves alone between its single ones.
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value)
    return value if isinstance(value, str) else notation.written(value)


def without_lanes(task: str) -> str:
    """A task by its name in configs, without its number of lanes: memory_chain(length=16)."""
    call = notation.parse(task, "task")
    if not isinstance(call, notation.Call):
        return task
    keywords = {name: value for name, value in call.keywords.items() if name != "batch_size"}
    return repr(notation.Call(call.name, call.positional, keywords))


def methods_of(runs: Sequence[Run]) -> list[str]:
    """The methods, in the order in which they come."""
    return list(dict.fromkeys(run.method for run in runs))


def by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each method, in the order in which they come."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.method, []).append(run)
    return found


def status_of(runs: Sequence[Run]) -> str:
    """How far the runs of a method have come, in words."""
    parts = []
    if running := [run for run in runs if run.status == "running"]:
        last = min(running, key=lambda run: run.steps)
        at = f"{last.steps:,} of {last.planned_steps:,} steps"
        parts.append(f"running: {_some(running, runs, ' at ')}{at}")
    if diverged := [run for run in runs if run.status == "diverged"]:
        ends = sorted({run.steps for run in diverged})
        after = " to ".join(f"{end:,}" for end in dict.fromkeys([ends[0], ends[-1]]))
        parts.append(f"diverged: {_some(diverged, runs, ' after ')}{after} steps")
    if runs[0].status == "public":
        return "public log"
    return "; ".join([*(parts or ["done"]), *_of_the_full_scale(runs)])


def _of_the_full_scale(runs: Sequence[Run]) -> Iterator[str]:
    """What it would be, if the runs of a method are planned for fewer steps or are of fewer seeds."""
    full, planned = runs[0].full, max(run.planned_steps for run in runs)
    if full is None:
        return
    seeds = len({run.seed for run in runs})
    if planned < full.steps or seeds < full.seeds:
        yield f"full scale: {full.steps:,} steps of {full.seeds} seeds"


def _some(some: Sequence[Run], runs: Sequence[Run], then: str) -> str:
    return f"{len(some)} of {len(runs)} seeds{then}" if len(runs) > 1 else ""


def _series(curve: Mapping[str, Sequence[Any]]) -> Series:
    steps = curve["step"]
    return {
        field: {step: value for step, value in zip(steps, values) if value is not None}
        for field, values in curve.items()
        if field != "step"
    }


def _method(estimator: str) -> str:
    """16-OK for the logs' OK-16; with the lanes where they are not as many as ours."""
    name, _, rank = estimator.partition("-")
    return f"{rank}-{name}{', batch 256' if name == 'KTP' else ''}"


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if not path.exists():
        return
    with open(path, newline="") as file:
        yield from csv.DictReader(file)
