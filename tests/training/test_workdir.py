from __future__ import annotations

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
    workdir.claim(tmp_path, config)
    assert workdir.read_document(tmp_path / "config.json") == config
    assert workdir.claim(tmp_path, config) == []
    other = {"num_steps": 10, "cell": {"name": "lstm", "hidden_size": 3, "forget_bias": 1.0}}
    with pytest.raises(WorkdirError) as raised:
        workdir.claim(tmp_path, other)
    assert str(raised.value) == (
        f'workdir {tmp_path} was made by another config: cell.name ("gru" there, "lstm" now), '
        f"cell.forget_bias (not set there, 1.0 now); choose another --workdir"
    )


def test_free_fields_may_change(tmp_path):
    workdir.claim(tmp_path, {"num_steps": 10, "seed": 0})
    assert not workdir.claim(tmp_path, {"num_steps": 20, "seed": 0}, free=frozenset({"num_steps"}))
    assert workdir.read_document(tmp_path / "config.json")["num_steps"] == 20


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other", "no digest"])
def test_a_damaged_document_is_set_aside(tmp_path, damage):
    workdir.claim(tmp_path, {"seed": 1})
    path = tmp_path / "config.json"
    whole = path.read_text()
    spoiled = {
        "empty": "",
        "cut": whole[:-20],
        "flipped": whole.replace('"seed": 1', '"seed": 3'),
        "other": "[1, 2]",
        "no digest": '{"seed": 1}',
    }
    path.write_text(spoiled[damage])
    with pytest.raises(workdir.DamagedError, match=r"config\.json is not as it was written"):
        workdir.read_document(path)
    (note,) = workdir.claim(tmp_path, {"seed": 1})
    assert "config.json is not as it was written; moved to" in note
    assert (tmp_path / "set_aside" / "config.json").read_text() == spoiled[damage]
    assert path.read_text() == whole


def test_what_is_set_aside_never_covers_another(tmp_path):
    for text in ("a", "b", "c"):
        (tmp_path / "log").write_text(text)
        place = workdir.set_aside(tmp_path / "log")
        assert place.read_text() == text
    assert len(list((tmp_path / "set_aside").iterdir())) == 3
