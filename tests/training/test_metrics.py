from __future__ import annotations

import contextlib
import json
import resource
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.record_writer import masked_crc32c

from kfrtrl_jax.training import events, metrics, sinks
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


@contextlib.contextmanager
def opened(folder, step=0, warn=pytest.fail):
    """A log and its events."""
    with contextlib.ExitStack() as stack:
        log, records = metrics.open_log(folder, step, warn)
        yield sinks.together(stack, [log, events.tensorboard(folder / "tensorboard")(records)])


def write(folder, steps=(10, 20, 30)):
    with opened(folder) as sink:
        for step in steps:
            sink.write({"step": step, "loss": step / 7})
    return (folder / metrics.METRICS).read_text().splitlines(keepends=True)


def read_events(folder):
    """The TensorBoard events of a folder, in order."""
    (file,) = folder.glob("events*")
    contents, found = file.read_bytes(), []
    while contents:
        # A record: its length, a checksum, its bytes, a checksum.
        end = 12 + struct.unpack("<Q", contents[:8])[0]
        for part, checksum in ((slice(8), slice(8, 12)), (slice(12, end), slice(end, end + 4))):
            expected = masked_crc32c(contents[part])
            assert struct.unpack("<I", contents[checksum]) == (expected,)
        found.append(Event.FromString(contents[12:end]))
        contents = contents[end + 4 :]
    return found


def steps_of(folder):
    """The steps of the loss in the TensorBoard events of a run, in order."""
    found = read_events(folder / "tensorboard")
    return [event.step for event in found for value in event.summary.value if value.tag == "loss"]


def test_lines_after_the_step_are_moved_when_a_run_is_resumed(tmp_path):
    lines = write(tmp_path)
    path = tmp_path / metrics.METRICS
    path.write_text("".join(lines) + '{"step": 40, "lo')
    warnings = []
    with opened(tmp_path, 20, warnings.append) as sink:
        assert path.read_text() == "".join(lines[:2])
        sink.write({"step": 30, "loss": 0.0})
    assert [record["step"] for record in metrics.read(path)] == [10, 20, 30]
    assert steps_of(tmp_path) == [10, 20, 30]
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
    with opened(tmp_path, 30, warnings.append):
        pass
    assert path.read_text() == lines[0] + lines[2]
    assert len(warnings) == 1
    assert (tmp_path / "set_aside" / metrics.METRICS).exists()


def test_a_run_that_starts_anew_has_each_event_once(tmp_path):
    lines = write(tmp_path, (10, 20))
    with opened(tmp_path, warn=lambda _: None) as sink:
        sink.write({"step": 10, "loss": 0.0})
    assert steps_of(tmp_path) == [10]
    assert (tmp_path / "set_aside" / metrics.METRICS).read_text() == "".join(lines)


def test_a_trial_has_its_hyper_parameters_and_its_end_in_the_events(tmp_path):
    sink = events.tensorboard(tmp_path, {"seed": 3, "estimator": {"name": "uoro"}})([])
    sink.write({"step": 10, "wall_time": 1.0, "loss": 0.5, "score": None})
    assert len(read_events(tmp_path)) == 2
    sink.conclude({"step": 10})
    sink.close()
    version, start, scalars, end = read_events(tmp_path)
    assert version.file_version == "brain.Event:2"
    values = [HParamsPluginData.FromString(plugin_of(event)) for event in (start, end)]
    assert values[0].session_start_info.hparams["seed"].number_value == 3
    assert "uoro" in values[0].session_start_info.hparams["estimator"].string_value
    assert values[1].session_end_info.status == 1
    assert [(value.tag, value.simple_value) for value in scalars.summary.value] == [("loss", 0.5)]


def plugin_of(event):
    (value,) = event.summary.value
    assert value.metadata.plugin_data.plugin_name == "hparams"
    return value.metadata.plugin_data.content


def test_the_events_of_many_trials_need_no_open_files(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        openers = [events.tensorboard(tmp_path / str(i), {"seed": i}) for i in range(100)]
        opened_sinks = [opener([]) for opener in openers]
        for sink in opened_sinks:
            sink.write({"step": 10, "loss": 0.5})
            sink.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(list(tmp_path.glob("*/events*"))) == 100


def test_the_last_step_of_a_log_is_that_of_its_last_whole_line(tmp_path):
    assert metrics.last_step(tmp_path) == 0
    write(tmp_path, range(10, 10_000, 10))
    path = tmp_path / metrics.METRICS
    assert path.stat().st_size > metrics._LONGEST_LINE
    assert metrics.last_step(tmp_path) == 9990
    path.write_bytes(path.read_bytes()[:-3])
    assert metrics.last_step(tmp_path) == 9980
