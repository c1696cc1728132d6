from __future__ import annotations

import pickle
import shutil
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax.errors import WorkdirError
from kfrtrl_jax.training.checkpoints import (
    Checkpoints,
    SaveError,
    load_parameters,
    save_parameters,
)


class State(NamedTuple):
    weights: dict[str, Any]
    key: Any
    step: Any
    empty: Any


def make(seed: int) -> State:
    key = jax.random.key(seed)
    weights = {"w": jax.random.normal(key, (64, 64)), "half": jnp.ones(3, jnp.bfloat16) / 3}
    return State(weights, jax.random.split(key, 2), jnp.asarray(seed, jnp.int32), jnp.zeros((0, 2)))


def assert_equal(a: State, b: State) -> None:
    chex.assert_trees_all_equal_dtypes(a, b)
    chex.assert_trees_all_equal(a, b)


def write(folder, steps=(10, 20, 30)):
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(step, make(step), {"wall_time": step / 10})
    checkpoints.close()


def read(folder):
    warnings: list[str] = []
    checkpoints = Checkpoints(folder)
    restored = checkpoints.restore(jax.eval_shape(lambda: make(0)), warnings.append)
    steps = checkpoints.last_step()
    checkpoints.close()
    return restored, warnings, steps


def spoil(folder) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_state_comes_back_bit_for_bit(tmp_path):
    write(tmp_path)
    restored, warnings, _ = read(tmp_path)
    assert restored.step == 30
    assert restored.info == {"wall_time": 3.0}
    assert warnings == []
    assert_equal(restored.state, make(30))


def test_the_last_two_are_kept(tmp_path):
    write(tmp_path)
    kept = (tmp_path / "checkpoints").iterdir()
    assert sorted(int(p.name) for p in kept if p.name.isdigit()) == [20, 30]


def test_nothing_written_is_nothing_restored(tmp_path):
    assert read(tmp_path) == (None, [], None)


def test_a_broken_checkpoint_gives_way_to_the_one_before(tmp_path):
    write(tmp_path)
    spoil(tmp_path / "checkpoints" / "30")
    restored, warnings, newest = read(tmp_path)
    assert restored.step == newest == 20
    assert_equal(restored.state, make(20))
    assert len(warnings) == 1
    assert warnings[0].startswith("the checkpoint of step 30 cannot be used (")
    assert "\n" not in warnings[0]


@pytest.mark.parametrize(("saved", "changed"), [('"digest": "', '"digest": "f'), ("3.0", "3.5")])
def test_a_changed_value_is_noticed(tmp_path, saved, changed):
    write(tmp_path)
    metadata = next((tmp_path / "checkpoints" / "30" / "info").glob("metadata"))
    text = metadata.read_text()
    assert text.replace(saved, changed) != text
    metadata.write_text(text.replace(saved, changed))
    restored, warnings, _ = read(tmp_path)
    assert restored.step == 20
    assert "its bytes are not those that were saved" in warnings[0]
    assert (tmp_path / "set_aside" / "30").is_dir()


def test_checkpoints_that_are_gone_are_missed(tmp_path):
    write(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "30")
    restored, warnings, _ = read(tmp_path)
    assert restored.step == 20
    assert warnings == ["the checkpoint of step 30, the last one written, is gone"]
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(WorkdirError, match=r"is empty, but one was written; put a copy back"):
        read(tmp_path)


def test_a_write_that_was_cut_off_is_no_checkpoint(tmp_path):
    write(tmp_path)
    (tmp_path / "checkpoints" / "30").rename(tmp_path / "checkpoints" / "30.orbax-checkpoint-tmp")
    restored, _, _ = read(tmp_path)
    assert restored.step == 20


def test_where_none_is_left_there_is_one_clear_line(tmp_path):
    write(tmp_path)
    spoil(tmp_path / "checkpoints" / "20")
    spoil(tmp_path / "checkpoints" / "30")
    with pytest.raises(
        WorkdirError, match=r"no checkpoint in .* can be used \(steps 30, 20: "
    ) as e:
        read(tmp_path)
    assert "\n" not in str(e.value)
    assert (tmp_path / "checkpoints" / "30").exists()


def test_a_state_of_another_shape_is_refused(tmp_path):
    write(tmp_path, steps=(10,))
    checkpoints = Checkpoints(tmp_path)
    like = make(0)._replace(step=jnp.zeros(3, jnp.int32))
    with pytest.raises(
        WorkdirError, match=r"step 10 is whole, but .*: step is int32\[\], not int32\[3\]"
    ):
        checkpoints.restore(like, lambda line: None)
    checkpoints.close()


def test_arrays_that_have_one_name_are_refused(tmp_path):
    clear = {"a": {"b": jnp.ones(3)}, "a-b": jnp.zeros(3)}
    save_parameters(tmp_path / "best", clear)
    chex.assert_trees_all_equal(load_parameters(tmp_path / "best", clear), clear)
    both = {"a": {"b": jnp.ones(3)}, "a.b": jnp.zeros(3)}
    with pytest.raises(SaveError, match=r"two arrays have the name a\.b, .* rename an entry"):
        save_parameters(tmp_path / "other", both)
    assert not (tmp_path / "other").exists()


def test_parameters_are_written_and_overwritten(tmp_path):
    for seed in (1, 2):
        save_parameters(tmp_path / "best", make(seed).weights)
    loaded = load_parameters(tmp_path / "best", make(0).weights)
    assert np.array_equal(loaded["w"], make(2).weights["w"])
    with pytest.raises(WorkdirError, match="no parameters can be read from"):
        load_parameters(tmp_path / "none", make(0).weights)
    assert not [path for path in tmp_path.iterdir() if path.name != "best"]
    file = max((tmp_path / "best").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)
    with pytest.raises(WorkdirError, match="no parameters can be read from"):
        load_parameters(tmp_path / "best", make(0).weights)


class Evil:
    """Runs code where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("where", ["handler", "arrays", "info", "beside"])
def test_a_malicious_checkpoint_runs_no_code(tmp_path, monkeypatch, where):
    marker = tmp_path / "marker"
    (tmp_path / "evil_module.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    payload = pickle.dumps(Evil(marker))
    write(tmp_path)
    folder = tmp_path / "checkpoints" / "30"
    # Without the digest of the files Orbax reads them.
    (folder / "files.sha256").unlink()
    if where == "handler":
        path = folder / "_CHECKPOINT_METADATA"
        text = path.read_text().replace(
            "orbax.checkpoint._src.handlers.json_checkpoint_handler.JsonCheckpointHandler",
            "evil_module.Handler",
        )
        assert "evil_module" in text
        path.write_text(text)
    elif where == "info":
        (folder / "info" / "metadata").write_bytes(payload)
    elif where == "beside":
        (folder / "state" / "state.pkl").write_bytes(payload)
        (folder / "state" / "checkpoint").write_bytes(payload)
    else:
        for file in (folder / "state").rglob("*"):
            if file.is_file():
                file.write_bytes(payload)
    restored, _, _ = read(tmp_path)
    assert restored.step in (20, 30)
    assert not marker.exists()
    pickle.loads(payload).close()
    assert marker.exists()
