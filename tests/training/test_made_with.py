from __future__ import annotations

import subprocess

import jax
import pytest

from kfrtrl_jax.errors import WorkdirError
from kfrtrl_jax.training import made_with, workdir

DATA = {"text(batch_size=2)": "a1"}


def test_the_same_is_bound_in_silence(tmp_path):
    assert made_with.bind(tmp_path, DATA) == []
    assert made_with.bind(tmp_path, DATA) == []
    # A sweep may get trials on other tasks; what it had stays bound.
    assert made_with.bind(tmp_path, {"penn_treebank": "b2", "copy": ""}) == []
    assert workdir.read_document(tmp_path / made_with.FILE)["data"] == {
        **DATA,
        "penn_treebank": "b2",
    }


def test_other_data_are_refused(tmp_path):
    made_with.bind(tmp_path, DATA)
    with pytest.raises(
        WorkdirError, match=r"other data: what text\(batch_size=2\) reads has changed"
    ):
        made_with.bind(tmp_path, {"text(batch_size=2)": "a2"})


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("jax_enable_x64", False, r"the precision \(jax_enable_x64\) was float64 and is float32"),
        ("jax_default_prng_impl", "rbg", "was threefry2x32 and is rbg"),
        ("jax_default_matmul_precision", "highest", "was float32 and is highest"),
    ],
)
def test_other_numbers_are_refused(tmp_path, setting, value, words):
    made_with.bind(tmp_path, DATA)
    before = getattr(jax.config, setting)
    jax.config.update(setting, value)
    try:
        with pytest.raises(WorkdirError, match=words):
            made_with.bind(tmp_path, DATA)
    finally:
        jax.config.update(setting, before)


def test_another_version_or_device_is_said(tmp_path, monkeypatch):
    made_with.bind(tmp_path, DATA)
    now = made_with.now(DATA)
    changed = {**now, "versions": {**now["versions"], "jax": "99.0"}, "device": "TPU v9"}
    monkeypatch.setattr(made_with, "now", lambda data: changed)
    (note,) = made_with.bind(tmp_path, DATA)
    assert note.startswith(f"jax {now['versions']['jax']} is now 99.0; the device")
    assert note.endswith("numbers may differ from those before by rounding")
    assert made_with.bind(tmp_path, DATA) == []


def test_a_damaged_file_is_set_aside(tmp_path):
    made_with.bind(tmp_path, DATA)
    (tmp_path / made_with.FILE).write_text("{}")
    (note,) = made_with.bind(tmp_path, DATA)
    assert "made_with.json is not as it was written; moved to" in note


def test_each_commit_and_processor_that_worked_on_it_is_noted_once(tmp_path, monkeypatch):
    made_with.bind(tmp_path, DATA)
    made_with.bind(tmp_path, DATA)
    monkeypatch.setattr(made_with, "commit", lambda: "0123456789ab+")
    made_with.bind(tmp_path, DATA)
    first, second = workdir.read_document(tmp_path / made_with.FILE)["sittings"]
    assert second["commit"] == "0123456789ab+"
    assert first["cores"] == second["cores"] >= 1


def test_the_commit_is_that_of_the_repository(monkeypatch):
    path = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    if path.returncode:
        pytest.skip("the tests do not run in a repository")
    assert path.stdout.startswith(made_with.commit().removesuffix("+"))
    monkeypatch.setenv(made_with.COMMIT_VARIABLE, "0123456789ab")
    assert path.stdout.startswith(made_with.commit().removesuffix("+"))


def test_without_a_repository_the_commit_is_what_the_environment_says(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(made_with.COMMIT_VARIABLE, raising=False)
    assert made_with.commit() == ""
    monkeypatch.setenv(made_with.COMMIT_VARIABLE, "0123456789ab")
    assert made_with.commit() == "0123456789ab"
