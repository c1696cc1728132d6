"""TensorBoard events: the records of a run, and the hyper-parameters of a trial.

A file of events is open only for a moment, as a group of trials has one for each. The writers of
tensorboardX keep theirs open; its `SummaryWriter` also writes from a thread behind a queue of limited
length: if that thread ends on a full disk, the run waits for it forever.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.record_writer import masked_crc32c

from kfrtrl_jax.training import faults
from kfrtrl_jax.training.sinks import Opener, Record, Sink, append

FOLDER = "tensorboard"
_SECONDS_BETWEEN_APPENDS = 60.0
_MOST_BYTES_KEPT = 1 << 16
_SUCCESS, _FAILURE = 1, 2


def tensorboard(folder: Path, chosen: Mapping[str, Any] | None = None) -> Opener:
    """A sink that writes events, in place of older ones, so that they show each step once.

    Args:
      folder: of the events, which is created.
      chosen: hyper-parameters for TensorBoard's table of runs; None or {} for a run that has none.
    """

    def opener(records: Sequence[Record]) -> Sink:
        return _open(folder, chosen or {}, records)

    return opener


def _open(folder: Path, chosen: Mapping[str, Any], records: Sequence[Record]) -> Sink:
    begun = time.time() - (records[-1].get("wall_time", 0.0) if records else 0.0)
    first = [Event(wall_time=begun, file_version="brain.Event:2")]
    if chosen:
        _, start, _ = summary.hparams({path: _plain(v) for path, v in chosen.items()}, {})
        first.append(Event(wall_time=begun, summary=start))
    path = folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
    kept = [_framed(event) for event in (*first, *(_scalars(r, begun) for r in records))]
    with faults.naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        path.touch()
    appended, size = 0.0, 0

    def write(record: Record) -> None:
        add(_scalars(record, begun))
        if size > _MOST_BYTES_KEPT or time.monotonic() - appended > _SECONDS_BETWEEN_APPENDS:
            sync()

    def add(event: Event) -> None:
        nonlocal size
        kept.append(_framed(event))
        size += len(kept[-1])

    def sync() -> None:
        nonlocal appended, size
        data = b"".join(kept)
        kept.clear()
        appended, size = time.monotonic(), 0
        append(path, data)

    def conclude(outcome: Mapping[str, Any]) -> None:
        if chosen:
            add(Event(wall_time=time.time(), summary=_end(failed="diverged_at" in outcome)))

    sync()
    return Sink(write, sync, conclude, sync)


def _scalars(record: Record, begun: float) -> Event:
    """An event with the figures of a record."""
    values = [
        Summary.Value(tag=name, simple_value=value)
        for name, value in record.items()
        if value is not None and name not in ("step", "wall_time")
    ]
    time_of = begun + record.get("wall_time", 0.0)
    return Event(step=record["step"], wall_time=time_of, summary=Summary(value=values))


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _end(failed: bool) -> Summary:
    """Says that the trial with these hyper-parameters has ended."""
    info = SessionEndInfo(status=_FAILURE if failed else _SUCCESS, end_time_secs=time.time())
    content = HParamsPluginData(session_end_info=info, version=0).SerializeToString()
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content)
    metadata = SummaryMetadata(plugin_data=plugin)
    return Summary(value=[Summary.Value(tag="_hparams_/session_end_info", metadata=metadata)])


def _framed(event: Event) -> bytes:
    """An event as a record of a TFRecord file: its length, a checksum, its bytes, a checksum."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return b"".join((length, next(checksums), data, next(checksums)))
