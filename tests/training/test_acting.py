"""Runs of an actor-critic."""

import shutil
import sys

import pytest

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import metrics, plots, program, train, workdir
from tests.training.small import compiled_once, records

CONFIG = {
    "num_steps": 40,
    "log_every": 10,
    "checkpoint_every": 20,
    "cell": {"name": "lru", "hidden_size": 3},
    "estimator": {"name": "uoro"},
    "task": {"name": "control", "batch_size": 2, "parameters": "memory_length=3"},
    "optimizer": {"name": "adam", "learning_rate": 1e-2},
}


def test_a_run_logs_returns_and_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("gymnax")
    monkeypatch.setattr(plots, "plot_run", lambda *_: None)
    with compiled_once():
        summary = train.train(configs.resolve(CONFIG), tmp_path / "whole")
        shutil.copytree(tmp_path / "whole", tmp_path / "parts")
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / "40")
        train.train(configs.resolve(CONFIG), tmp_path / "parts")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    lines = metrics.read(tmp_path / "whole" / "metrics.jsonl")
    # Episodes of four steps, in two environments.
    assert [line["episodes"] for line in lines] == [4, 10, 14, 20]
    assert all(-1 <= line["score"] <= 1 for line in lines)
    assert summary["score_name"] == "return"
    assert workdir.read_document(tmp_path / "whole" / "summary.json") == summary


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segment_length": 2, "log_every": 10}, "needs segment_length = 1"),
        ({"credit": {"name": "dni", "share": 0.5}}, "no segments for a credit"),
        ({"on_nonfinite": "skip"}, 'use on_nonfinite = "stop"'),
        (
            {"task": {**CONFIG["task"], "environment": "MemoryChain"}},
            "config.task: gymnax has no environment 'MemoryChain'",
        ),
    ],
)
def test_what_an_actor_critic_cannot_do_is_one_line(changes, message):
    pytest.importorskip("gymnax")
    with pytest.raises(ConfigError, match=message) as error:
        program.build(configs.resolve({**CONFIG, **changes}))
    assert "\n" not in str(error.value)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ConfigError, match=r"gymnax .* pip install 'kfrtrl_jax\[control\]'"):
        program.build(configs.resolve(CONFIG))
