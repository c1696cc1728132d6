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
from tensorboardX import SummaryWriter

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
    events = SummaryWriter(str(workdir / "tensorboard"), purge_step=purge) if tensorboard else None
    with open(path, "a") as file:

        def write(record: Record) -> None:
            file.write(_line(record))
            file.flush()
            for name, value in record.items():
                if events and value is not None and name not in ("step", "wall_time"):
                    events.add_scalar(name, value, record["step"])

        def sync() -> None:
            os.fsync(file.fileno())
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
