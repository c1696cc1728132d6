from __future__ import annotations

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from kfrtrl_jax.training import metrics
from kfrtrl_jax.training.program import ChunkMetrics


def chunk(**changes) -> ChunkMetrics:
    values = {
        "loss": np.float32(0.1),
        "score": np.float32(0.7),
        "running_loss": np.float32(1.5),
        "gradient_norm": np.float32(2.0),
        "bad_step": np.int32(-1),
        "bad_leaf": np.int32(-1),
        "task": {"sequence_length": np.int32(3)},
        "estimator": {"norm": np.float32(np.inf)},
    }
    return ChunkMetrics(**{**values, **changes})


def test_a_record_is_flat_and_plain():
    record = metrics.make_record(chunk(), step=10, wall_time=0.5)
    assert list(record.items()) == [
        ("step", 10),
        ("wall_time", 0.5),
        ("loss", 0.1),
        ("score", 0.7),
        ("running_loss", 1.5),
        ("gradient_norm", 2.0),
        ("sequence_length", 3),
        ("estimator/norm", None),
    ]
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-30, 123456.789])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16])
def test_numbers_lose_nothing(value, dtype):
    assert dtype(metrics.number(dtype(value))) == dtype(value)


def write(folder, steps=(10, 20, 30)):
    with metrics.open_writer(folder, warn=pytest.fail) as writer:
        for step in steps:
            writer.write({"step": step, "loss": step / 7})
    return (folder / metrics.METRICS).read_text().splitlines(keepends=True)


def events(folder):
    """The steps of the loss in the TensorBoard events, in order."""
    (file,) = (folder / "tensorboard").glob("events*")
    contents, steps = file.read_bytes(), []
    while contents:
        # A record: its length, a checksum, its bytes, a checksum.
        end = 12 + struct.unpack("<Q", contents[:8])[0]
        event = Event.FromString(contents[12:end])
        steps += [event.step for value in event.summary.value if value.tag == "loss"]
        contents = contents[end + 4 :]
    return steps


def test_lines_after_the_step_are_moved_when_a_run_is_resumed(tmp_path):
    lines = write(tmp_path)
    path = tmp_path / metrics.METRICS
    path.write_text("".join(lines) + '{"step": 40, "lo')
    warnings = []
    with metrics.open_writer(tmp_path, 20, warn=warnings.append) as writer:
        assert path.read_text() == "".join(lines[:2])
        writer.write({"step": 30, "loss": 0.0})
    assert [record["step"] for record in metrics.read(path)] == [10, 20, 30]
    assert events(tmp_path) == [10, 20, 30]
    (warning,) = warnings
    assert warning.endswith("1 damaged and 1 of steps after 20, which are run again")
    aside = tmp_path / "set_aside" / metrics.METRICS
    assert aside.read_text() == '{"step": 40, "lo\n' + lines[2]


@pytest.mark.parametrize("damage", ["\n", '{"step": 20}\n', "flip", "\xff\x00\n"])
def test_a_damaged_line_costs_no_other(tmp_path, damage):
    lines = write(tmp_path)
    path = tmp_path / metrics.METRICS
    spoiled = lines[1].replace("2.857", "2.957") if damage == "flip" else damage
    path.write_bytes("".join([lines[0], spoiled, lines[2]]).encode("latin-1"))
    assert [record["step"] for record in metrics.read(path)] == [10, 30]
    warnings = []
    with metrics.open_writer(tmp_path, 30, warn=warnings.append):
        pass
    assert path.read_text() == lines[0] + lines[2]
    assert len(warnings) == 1
    assert (tmp_path / "set_aside" / metrics.METRICS).exists()


def test_a_run_that_starts_anew_has_each_event_once(tmp_path):
    lines = write(tmp_path, (10, 20))
    with metrics.open_writer(tmp_path, 0, warn=lambda _: None) as writer:
        writer.write({"step": 10, "loss": 0.0})
    assert events(tmp_path) == [10]
    assert (tmp_path / "set_aside" / metrics.METRICS).read_text() == "".join(lines)
