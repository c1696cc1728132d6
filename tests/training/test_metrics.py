from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax.training import metrics
from kfrtrl_jax.training.program import ChunkMetrics


def chunk(**changes) -> ChunkMetrics:
    values = {
        "loss": np.float32(0.1),
        "score": np.float32(0.7),
        "running_loss": np.float32(1.5),
        "gradient_norm": np.float32(2.0),
        "bad_step": np.int32(-1),
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


def test_lines_after_the_step_are_dropped_when_a_run_is_resumed(tmp_path):
    with metrics.open_writer(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.write({"step": step, "loss": step / 7})
    path = tmp_path / metrics.METRICS
    lines = path.read_text().splitlines()
    path.write_text(path.read_text() + '{"step": 40, "lo')
    with metrics.open_writer(tmp_path, 20) as writer:
        assert path.read_text().splitlines() == lines[:2]
        writer.write({"step": 30, "loss": 0.0})
    assert [record["step"] for record in metrics.read(path)] == [10, 20, 30]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_number_that_is_not_finite_stops_the_run():
    metrics.check_finite(chunk())
    with pytest.raises(metrics.NonFiniteError, match="no longer finite at step 17;"):
        metrics.check_finite(chunk(bad_step=np.int32(17)))
