from __future__ import annotations

import json
import os

import pytest

from kfrtrl_jax.errors import WorkdirError
from kfrtrl_jax.training import workdir


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    with workdir.hold(tmp_path / "run"):
        message = f"is in use by the run with process id {os.getpid()};"
        with pytest.raises(WorkdirError, match=message), workdir.hold(tmp_path / "run"):
            pass
    with workdir.hold(tmp_path / "run"):
        pass


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(WorkdirError, match="cannot be written"), workdir.hold(tmp_path / "run"):
        pass


def test_a_folder_belongs_to_its_config(tmp_path):
    config = {"num_steps": 10, "cell": {"name": "gru", "hidden_size": 3}}
    assert not workdir.claim(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text()) == config
    assert workdir.claim(tmp_path, config)
    other = {"num_steps": 10, "cell": {"name": "lstm", "hidden_size": 3, "forget_bias": 1.0}}
    with pytest.raises(WorkdirError) as raised:
        workdir.claim(tmp_path, other)
    assert str(raised.value) == (
        f'workdir {tmp_path} was made by another config: cell.name ("gru" there, "lstm" now), '
        f"cell.forget_bias (not set there, 1.0 now); choose another --workdir"
    )


def test_free_fields_may_change(tmp_path):
    workdir.claim(tmp_path, {"num_steps": 10, "seed": 0})
    assert workdir.claim(tmp_path, {"num_steps": 20, "seed": 0}, free=frozenset({"num_steps"}))
    assert json.loads((tmp_path / "config.json").read_text())["num_steps"] == 20


def test_a_broken_config_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"num_steps": ')
    with pytest.raises(WorkdirError, match=r"config\.json cannot be read: ") as raised:
        workdir.claim(tmp_path, {"num_steps": 10})
    assert "\n" not in str(raised.value)
