"""The engines of clusters, on this machine, and the storage of machines that share no file system."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from kfrtrl_jax.errors import ConfigError, DataError, WorkdirError
from kfrtrl_jax.training import checkpoints, engines, loop, metrics, sweep, trials, workdir
from kfrtrl_jax.training.engines import jobs, remote, storage
from kfrtrl_jax.training.engines.local import make_local
from tests.training.small import nested, records, text, timeless

BASE = nested({"num_steps": 40, "estimator": "truncated"})
SIZES = sweep.grid(**{"cell.hidden_size": [2, 3]})


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the engine of this process gives."""
    return outcome(sweep.run_sweep(BASE, SIZES, folder := tmp_path_factory.mktemp("local")), folder)


def outcome(results, folder):
    logs = [records(folder / "trials" / f"{i:03}") for i in range(len(results))]
    return [timeless(result) for result in results], logs


def stored(url):
    """The local engine with a storage, as a machine would run it that shares nothing else."""
    return lambda _: remote.with_storage(url, make_local())


def runs_of(job, monkeypatch):
    """Counts the chunks of a job."""


class KilledError(Exception):
    pass


def killed_after(monkeypatch, step):
    """Ends the process, as far as its files can tell, when it has come to a step."""
    advance = loop.Training._advance

    def killed(training, chunk):
        if training.step == step:
            raise KilledError
        advance(training, chunk)

    monkeypatch.setattr(loop.Training, "_advance", killed)


def steps_of(monkeypatch):
    """Collects the steps at which chunks begin from here on."""
    seen, advance = [], loop.Training._advance

    def counted(training, chunk):
        seen.append(training.step)
        advance(training, chunk)

    monkeypatch.setattr(loop.Training, "_advance", counted)
    return seen


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_sweep_through_a_storage_is_that_of_one_folder(scheme, expected, tmp_path, monkeypatch):
    """Killed, it goes on from the storage alone, in another folder."""
    url = f"{scheme}://{tmp_path}/storage"
    with monkeypatch.context() as patched:
        killed_after(patched, 30)
        with pytest.raises(KilledError):
            sweep.run_sweep(BASE, SIZES, tmp_path / "one", make_engine=stored(url))
    with monkeypatch.context() as patched:
        seen = steps_of(patched)
        results = sweep.run_sweep(BASE, SIZES, tmp_path / "other", make_engine=stored(url))
    assert seen == [20, 30, 0, 10, 20, 30]
    assert outcome(results, tmp_path / "other") == expected
    assert not list((tmp_path / "other").rglob("set_aside"))
    steps = [path.name for path in (tmp_path / "other/groups/001/checkpoints").iterdir()]
    assert sorted(steps) == ["20", "40"]
