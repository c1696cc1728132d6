"""Lanes and trials spread over devices, in a process that has eight of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kfrtrl_jax.training import plots, train
from tests.training.sharded import LENGTHS
from tests.training.small import records, small


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    command = [sys.executable, "-m", "tests.training.sharded", str(tmp_path_factory.mktemp("runs"))]
    settings = {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **settings},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_the_number_of_devices_changes_rounding_alone(result, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "plot_run", lambda *_: None)
    train.train(small({**LENGTHS, "devices": 1}), tmp_path)
    expected = [record["running_loss"] for record in records(tmp_path)]
    # A checkpoint of eight devices is continued on two, and one of two on eight.
    for name in ("run", "back"):
        np.testing.assert_allclose(result["figures"][name], expected, rtol=1e-9)
    np.testing.assert_allclose(result["figures"]["sweep"], expected[-1], rtol=1e-6)


def test_lanes_and_trials_lie_on_all_devices_that_can_have_equal_shares(result):
    # Eight devices and then two, and the other way; three trials on three of them.
    assert result["layouts"] == [8, 2, 2, 8, 3]


def test_unequal_shares_and_missing_devices_are_refused(result):
    assert result["refused"] == [
        "config.devices must divide the number of lanes (8), got 3; 0 takes as many as possible",
        "config.devices must be at most 8, as many as there are, got 9",
    ]


def test_the_gradient_crosses_once_and_little_else(result):
    crossing = result["crossing"]
    # The loss, and flags of what is finite, come on top.
    assert crossing["gradient"] < crossing["all"] < crossing["gradient"] + 200
