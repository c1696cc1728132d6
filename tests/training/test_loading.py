"""What `kfrtrl_jax.load` says of folders that it cannot read."""

import jax.numpy as jnp
import pytest

import kfrtrl_jax as kf
from kfrtrl_jax.errors import ConfigError, WorkdirError
from kfrtrl_jax.training import checkpoints, workdir
from tests.training.small import small


def unfinished(folder, config):
    """As a run that has not come to its end."""
    (folder / checkpoints.FOLDER / "10").mkdir(parents=True)


def without_its_last_bytes(folder, config):
    path = folder / workdir.CONFIG
    path.write_text(path.read_text()[:-9])


def of_a_later_version(folder, config):
    workdir.write_document(folder / workdir.CONFIG, {**config, "cells": 3})


def of_a_sweep(folder, config):
    workdir.write_document(folder / workdir.CONFIG, {"001": config, "000": config})


def of_control(folder, config):
    pytest.importorskip("gymnax")
    task = {"name": "control", "environment": "MemoryChain-bsuite", "batch_size": 2}
    workdir.write_document(folder / workdir.CONFIG, {**config, "task": task})


def with_parameters_of_another_network(folder, config):
    checkpoints.save_parameters(folder / "final", {"cell": {"weights": jnp.ones((2, 2))}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unfinished, "FOLDER has no final parameters: the run must be finished first"),
        (without_its_last_bytes, "FOLDER/config.json is not as it was written"),
        (of_a_later_version, "FOLDER is of another version of kfrtrl_jax, or of factories that this "
         "process does not have: config.cells is not a field of a config; did you mean cell"),
        (of_a_sweep, "FOLDER is the workdir of a sweep: load one of its trials, FOLDER/trials/000"),
        (of_control, "FOLDER is a run of an actor-critic, which has no task to load"),
        (with_parameters_of_another_network, "what is in FOLDER/final is whole, but does not fit "),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_one_line(change, message, tmp_path):
    config = small().to_dict()
    workdir.write_document(tmp_path / workdir.CONFIG, config)
    change(tmp_path, config)
    with pytest.raises((ConfigError, WorkdirError)) as raised:
        kf.load(tmp_path)
    assert str(raised.value).startswith(message.replace("FOLDER", str(tmp_path)))
    assert "\n" not in str(raised.value)
