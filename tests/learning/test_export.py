"""A learner in a file, with which a process trains that does not have the library."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators, losses
from kfrtrl_jax.base import Batch, Loss
from kfrtrl_jax.cells import from_function
from kfrtrl_jax.learning import export
from tests.helpers.interpreter import evaluated
from tests.helpers.learners import learner_of
from tests.trajectories import SMALL_CELLS, sequence

ELSEWHERE = """
import sys, zipfile
sys.modules["kfrtrl_jax"] = None  # an import of it raises
import jax, numpy as np
with zipfile.ZipFile("learner.zip") as file:
    programs = {
        name: jax.jit(jax.export.deserialize(bytearray(file.read(name))).call)
        for name in ("init", "predict", "update", "step")
    }
    start = dict(np.load(file.open("state.npz")))
data = np.load("data.npz")
state = programs["init"](jax.random.key_data(jax.random.key(0)))
assert all(np.allclose(state[name], start[name], rtol=1e-12) for name in start)
told = []
for x, y, reset in zip(data["x"][:3], data["y"], data["reset"]):
    predictions, pending = programs["predict"](state, x, reset)
    state, metrics = programs["update"](state, pending, y)
    told.append(metrics["loss"])
state, metrics = programs["step"](state, *(data[name][3] for name in ("x", "y", "reset")))
np.savez("after.npz", told=[*told, metrics["loss"]], **state)
"""


needs_flatbuffers = pytest.mark.skipif(
    importlib.util.find_spec("flatbuffers") is None, reason="jax.export needs flatbuffers"
)


@needs_flatbuffers
def test_another_process_trains_with_it_without_the_library(tmp_path):
    learner = learner_of(SMALL_CELLS["vanilla"], estimators.kf_rtrl())
    x, y, reset = map(np.asarray, sequence(4))
    state = jax.jit(learner.init)(jax.random.key(0))
    export(learner, tmp_path / "learner.zip", jnp.int64(0), state=state, platforms=["cpu", "cuda"])
    with zipfile.ZipFile(tmp_path / "learner.zip") as file:
        about = json.loads(file.read("about.json"))
    assert about["platforms"] == ["cpu", "cuda"]
    assert (about["inputs"], about["targets"]) == ("float64[2, 3]", "int64[2]")
    np.savez(tmp_path / "data.npz", x=x, y=y, reset=reset)
    settings = {"ENABLE_X64": "1", "DISABLE_MOST_OPTIMIZATIONS": "1", "PLATFORMS": "cpu"}
    environment = {**os.environ, **{f"JAX_{name}": value for name, value in settings.items()}}
    command = [sys.executable, "-c", ELSEWHERE]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    after = np.load(tmp_path / "after.npz")
    segments = jax.tree.map(lambda a: a[:, None], Batch(x, y, reset))
    state, metrics = evaluated(lambda s, b: jax.lax.scan(learner.step, s, b), state, segments)
    np.testing.assert_allclose(after["told"], metrics.loss[:, 0], rtol=1e-10)
    for part in ("cell", "readout"):
        for name, own in state.parameters[part].items():
            np.testing.assert_allclose(after[f"parameters/{part}/{name}"], own, rtol=1e-10)


@needs_flatbuffers
def test_what_calls_back_is_refused_by_name(tmp_path):
    def loud(prediction, target):
        jax.debug.print("{}", target)
        return losses.cross_entropy().function(prediction, target)

    learner = learner_of(SMALL_CELLS["vanilla"], estimators.truncated(), loss=Loss(loud))
    with pytest.raises(ValueError, match=r"step cannot be exported: debug_\w+ at .*calls back"):
        export(learner, tmp_path / "learner.zip", jnp.int64(0))
    assert not (tmp_path / "learner.zip").exists()


def test_without_flatbuffers_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    learner = learner_of(SMALL_CELLS["vanilla"], estimators.truncated())
    with pytest.raises(ImportError, match=r"pip install 'kfrtrl_jax\[export\]'"):
        export(learner, tmp_path / "learner.zip", jnp.int64(0))


@needs_flatbuffers
def test_arrays_of_one_name_are_refused(tmp_path):
    def step(params, carry, x):
        carry = jnp.tanh(params["a"]["w"] * carry + params["a/w"] * x[0])
        return carry, carry

    def make(key):
        return {"a": {"w": jnp.ones(4)}, "a/w": jnp.zeros(4)}

    learner = learner_of(from_function(step, make, jnp.zeros(4)), estimators.truncated())
    with pytest.raises(ValueError, match=r"two arrays of the state have the name .*cell/a/w"):
        export(learner, tmp_path / "learner.zip", jnp.int64(0))


@needs_flatbuffers
def test_a_state_that_files_of_numpy_do_not_hold_is_refused(tmp_path):
    learner = learner_of(SMALL_CELLS["vanilla"], estimators.stored(estimators.kf_rtrl()))
    state = jax.jit(learner.init)(jax.random.key(0))
    with pytest.raises(ValueError, match=r"influence.* is bfloat16, which NumPy's files do not"):
        export(learner, tmp_path / "learner.zip", jnp.int64(0), state=state)
    assert not (tmp_path / "learner.zip").exists()
