"""Where the records of a run go: to its log, and to whatever else is told of them.

`metrics.open_log`, `events.tensorboard` and `on_wandb.connect` make sinks. The log is the truth; the
others are made from the same records, and can be made again from the log.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kfrtrl_jax.training import faults

Record = dict[str, Any]


class Sink(NamedTuple):
    """Takes the records of one run.

    Attributes:
      write: record -> None.
      sync: () -> None: what was written will be found by whoever looks, before a state is saved.
      conclude: summary -> None: the run has come to its end, with this summary.
      close: () -> None: nothing follows, whether the run has come to its end or not.
    """

    write: Callable[[Record], None]
    sync: Callable[[], None]
    conclude: Callable[[Mapping[str, Any]], None]
    close: Callable[[], None]


# From the records that the run has so far.
Opener = Callable[[Sequence[Record]], Sink]


def together(stack: contextlib.ExitStack, sinks: Sequence[Sink]) -> Sink:
    """Several sinks as one; the stack closes all of them, also if one fails."""
    for sink in sinks:
        stack.callback(sink.close)

    def write(record: Record) -> None:
        for sink in sinks:
            sink.write(record)

    def sync() -> None:
        for sink in sinks:
            sink.sync()

    def conclude(summary: Mapping[str, Any]) -> None:
        for sink in sinks:
            sink.conclude(summary)

    return Sink(write, sync, conclude, lambda: None)


def append(path: Path, data: bytes) -> None:
    """Adds to a file that is there. It is open only for a moment, as a sweep has many.

    Raises:
      OSError: with the file's name.
    """
    # Without a buffer, which would fail again when the file is closed.
    with faults.naming(path), open(path, "ab", buffering=0, opener=_existing) as file:
        while data:
            data = data[file.write(data) :]


def _existing(path: str, flags: int) -> int:
    """Opens a file, but does not make it anew where its folder has been emptied."""
    return os.open(path, flags & ~os.O_CREAT)
