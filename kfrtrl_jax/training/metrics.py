"""The log of a run: a line of JSON per record.

Every line ends with a checksum of itself, so that a line is read as it was written or not at all.

A record's fields: step, wall_time (seconds of run time, continued when a run is resumed), loss and
running_loss (in the unit that the task reports), score (the task's own, its loss if it has none),
gradient_norm, learning_rate (of the last update, where a schedule gives it), steps_per_second, the
task's metrics (such as sequence_length), the estimator's diagnostics under "estimator/", and valid_loss
and valid_score if there was an evaluation.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kfrtrl_jax.training import faults, nonfinite
from kfrtrl_jax.training.program import ChunkMetrics
from kfrtrl_jax.training.segments import RunState
from kfrtrl_jax.training.sinks import Record, Sink, append
from kfrtrl_jax.training.workdir import SET_ASIDE, write_text

METRICS = "metrics.jsonl"
_CHECKSUM = "crc32"

# The figures that runs are compared by.
OUTCOMES = ("running_loss", "score", "sequence_length", "valid_loss", "valid_score")

# A line is shorter than this, unless it has hundreds of figures.
_LONGEST_LINE = 1 << 15


class NonFiniteError(RuntimeError):
    """A run with values that are no longer finite, or with an absurd loss.

    Attributes:
      step: the time step at which that was found.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def make_record(metrics: ChunkMetrics, **fields: Any) -> Record:
    """A record of the given fields, followed by a chunk's metrics on the host."""
    named = {
        "loss": metrics.loss,
        "score": metrics.score,
        "running_loss": metrics.running_loss,
        "gradient_norm": metrics.gradient_norm,
        **metrics.task,
        **{f"estimator/{name}": value for name, value in metrics.estimator.items()},
    }
    return {**fields, **{name: number(value) for name, value in named.items()}}


def number(value: Any) -> int | float | None:
    """A scalar array as a plain number, as short as its type allows; None if it is not finite."""
    value = np.asarray(value)
    if np.issubdtype(value.dtype, np.integer):
        return int(value)
    return float(str(value[()])) if np.isfinite(value) else None


def check_finite(metrics: ChunkMetrics, state: RunState) -> None:
    """Checks that a chunk stayed finite.

    Args:
      metrics: of the chunk, on the host.
      state: of the run, or its shapes: for the names of its arrays.

    Raises:
      NonFiniteError: if a loss, a gradient or a state was not finite, if too many segments were
        skipped, or if the running loss is absurd.
    """
    step = int(metrics.bad_step)
    if step >= 0:
        what = nonfinite.described(state, int(metrics.bad_leaf), float(metrics.running_loss))
        raise NonFiniteError(
            f"{what} at step {step}; a lower optimizer.learning_rate or clip_norm may help", step
        )


def check_held_out(means: Any, step: int) -> None:
    """Checks that the loss on held-out data is finite.

    Raises:
      NonFiniteError: if it is not.
    """
    if not np.isfinite(means.loss):
        raise NonFiniteError(
            f"the validation loss is not finite at step {step}; a lower optimizer.learning_rate or "
            f"clip_norm may help",
            step,
        )


def open_log(
    workdir: Path, step: int = 0, warn: Callable[[str], None] = print
) -> tuple[Sink, list[Record]]:
    """Continues metrics.jsonl after `step`; the sink that writes it, and the records so far.

    Lines after that step, which will be written again, and damaged ones are moved to set_aside/.

    Args:
      workdir: of the run.
      step: from which it continues.
      warn: called with a line if any were moved.
    """
    path = workdir / METRICS
    log = read_log(path) if path.exists() else Log([], [])
    kept = [record for record in log.records if record["step"] <= step]
    later = [_line(record) for record in log.records if record["step"] > step]
    if moved := [*log.damaged, *later]:
        _set_lines_aside(path, moved)
        parts = [f"{len(log.damaged)} damaged"] * bool(log.damaged)
        parts += [f"{len(later)} of steps after {step}, which are run again"] * bool(later)
        warn(f"lines of {path} moved to {SET_ASIDE}/: {' and '.join(parts)}")
    write_text(path, "".join(_line(record) for record in kept))

    def sync() -> None:
        with faults.naming(path), open(path, "rb") as file:
            os.fsync(file.fileno())

    sink = Sink(
        write=lambda record: append(path, _line(record).encode()),
        sync=sync,
        conclude=lambda _: None,
        close=sync,
    )
    return sink, kept


class Log(NamedTuple):
    """What a metrics.jsonl holds.

    Attributes:
      records: those of whole lines.
      damaged: other lines, with their ends.
    """

    records: list[Record]
    damaged: list[str]


def read_log(path: Path) -> Log:
    """All lines of a metrics.jsonl, damaged ones apart."""
    log = Log([], [])
    for line in path.read_bytes().decode(errors="backslashreplace").splitlines(keepends=True):
        record = _parsed(line)
        if record is None:
            log.damaged.append(line)
        else:
            log.records.append(record)
    return log


def read(path: Path) -> list[Record]:
    """The records of a metrics.jsonl, without damaged lines such as an incomplete last one."""
    return read_log(path).records if path.exists() else []


def read_for(workdir: Path, step: int, log_every: int, warn: Callable[[str], None]) -> list[Record]:
    """The records of a run that has come to a step; `warn` is told if its log has lost lines."""
    records = read(workdir / METRICS)
    if lost := missing(workdir, records, step, log_every):
        warn(lost)
    return records


def last_step(workdir: Path) -> int:
    """The step of the last whole line of a run's log, from the end of the file alone; 0 for none."""
    try:
        with open(workdir / METRICS, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE))
            lines = file.read().decode(errors="replace").splitlines(keepends=True)
    except OSError:
        return 0
    found = (_parsed(line) for line in reversed(lines))
    return next((record["step"] for record in found if record is not None), 0)


def missing(workdir: Path, records: Sequence[Record], step: int, log_every: int) -> str:
    """Says that a log has no longer a line for each `log_every` steps up to `step`; "" if it has."""
    expected = set(range(log_every, step + 1, log_every))
    lost = expected - {record["step"] for record in records}
    return f"{len(lost)} of {len(expected)} lines of {workdir / METRICS} are gone" if lost else ""


def _line(record: Record) -> str:
    body = json.dumps(record, allow_nan=False)
    return f'{body[:-1]}, "{_CHECKSUM}": "{_checksum(body)}"}}\n'


def _parsed(line: str) -> Record | None:
    """The record of a line; None if it is not as it was written."""
    try:
        record = json.loads(line)
        checksum = record.pop(_CHECKSUM)
    except (ValueError, LookupError, AttributeError, TypeError):
        return None
    return record if checksum == _checksum(json.dumps(record)) else None


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def _set_lines_aside(path: Path, lines: Sequence[str]) -> None:
    folder = path.parent / SET_ASIDE
    folder.mkdir(exist_ok=True)
    with open(folder / path.name, "a") as file:
        file.writelines(line if line.endswith("\n") else f"{line}\n" for line in lines)
