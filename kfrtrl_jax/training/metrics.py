"""The log of a run: a line of JSON per record, and TensorBoard events.

A record's fields: step, wall_time (seconds of run time, continued when a run is resumed), loss and
running_loss (in the unit that the task reports), score (the task's own, its loss if it has none),
gradient_norm, steps_per_second, the task's metrics (such as sequence_length), the estimator's
diagnostics under "estimator/", and valid_loss and valid_score if there was an evaluation.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kfrtrl_jax.training import faults
from kfrtrl_jax.training.events import open_events
from kfrtrl_jax.training.program import ChunkMetrics
from kfrtrl_jax.training.workdir import write_text

METRICS = "metrics.jsonl"

Record = dict[str, Any]


class NonFiniteError(RuntimeError):
    """A run with values that are no longer finite."""


class Writer(NamedTuple):
    """Writes records.

    Attributes:
      write: record -> None.
      sync: () -> None: flushes all records to disk.
    """

    write: Callable[[Record], None]
    sync: Callable[[], None]


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


def check_finite(metrics: ChunkMetrics) -> None:
    """Checks that a chunk stayed finite.

    Raises:
      NonFiniteError: if a loss, a gradient or a state was not finite.
    """
    step = int(metrics.bad_step)
    if step >= 0:
        raise NonFiniteError(
            f"the loss, the gradient or the state is no longer finite at step {step}; "
            f"a lower optimizer.learning_rate or clip_norm may help"
        )


@contextlib.contextmanager
def open_writer(workdir: Path, step: int = 0, tensorboard: bool = True) -> Iterator[Writer]:
    """Continues metrics.jsonl and the TensorBoard events after `step`; later lines are dropped."""
    path = workdir / METRICS
    kept = [record for record in read(path) if record["step"] <= step] if path.exists() else []
    write_text(path, "".join(_line(record) for record in kept))
    purge = step + 1 if step else None
    events = open_events(workdir / "tensorboard", purge) if tensorboard else None
    # Without a buffer, which would fail again when the file is closed.
    with open(path, "ab", buffering=0) as file:

        def write(record: Record) -> None:
            line = _line(record).encode()
            with faults.naming(path):
                while line:
                    line = line[file.write(line) :]
            if events:
                shown = {name: value for name, value in record.items() if value is not None}
                for name in ("step", "wall_time"):
                    shown.pop(name, None)
                events.add(record["step"], shown)

        def sync() -> None:
            with faults.naming(path):
                os.fsync(file.fileno())
                # Raises if the folder has been removed or moved, which writing would not notice.
                path.stat()
            if events:
                events.flush()

        try:
            yield Writer(write, sync)
        finally:
            sync()
            if events:
                events.close()


def read(path: Path) -> list[Record]:
    """The records of a metrics.jsonl, without an incomplete last line."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
