"""TensorBoard events, written by the thread that makes them.

The `SummaryWriter` of tensorboardX writes from a thread of its own behind a queue of limited length: if
that thread ends on a full disk, the run waits for it forever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from kfrtrl_jax.training import faults

_SECONDS_BETWEEN_FLUSHES = 60.0


class Events(NamedTuple):
    """An open file of events. All raise OSError, with the folder's name, if it cannot be written.

    Attributes:
      add: (step, values by name) -> None.
      flush: () -> None, to the disk.
      close: () -> None, after `flush`.
    """

    add: Callable[[int, Mapping[str, Any]], None]
    flush: Callable[[], None]
    close: Callable[[], None]


def open_events(folder: Path) -> Events:
    """Begins a file of events in a folder, which is created if it does not exist."""
    with faults.naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(folder / "events"))
    flushed = time.monotonic()

    def add(step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            write(Event(step=step, wall_time=time.time(), summary=summary.scalar(name, value)))
        if time.monotonic() - flushed > _SECONDS_BETWEEN_FLUSHES:
            flush()

    def write(event: Event) -> None:
        with faults.naming(folder):
            writer.write_event(event)

    def flush() -> None:
        nonlocal flushed
        flushed = time.monotonic()
        with faults.naming(folder):
            writer.flush()

    def close() -> None:
        with faults.naming(folder):
            writer.close()

    return Events(add, flush, close)
