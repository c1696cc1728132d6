"""One run in two processes, on the CPU: real ones, that meet at a port."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import plots, processes, train
from tests.faults import entry
from tests.training.joined import CHANGES
from tests.training.small import compiled_once, records, small


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Runs that one process has begun, or two."""
    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_run", lambda *_: None)
        train.train(small({**CHANGES, "devices": 1, "num_steps": 20}), home / "one")
    return home


@pytest.fixture(scope="module")
def results(home, tmp_path_factory):
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    module, address = "tests.training.joined", f"127.0.0.1:{free_port()}"
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(home), address, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, **settings},
        )
        for number in range(2)
    ]
    outputs = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def test_the_number_of_processes_changes_rounding_alone(home, results, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "plot_run", lambda *_: None)
    alone = small({**CHANGES, "devices": 1})
    with compiled_once():
        train.train(alone, tmp_path)
        # One goes on from what two have saved; two have gone on from what one had saved.
        train.train(alone, home / "two")
    expected = [record["running_loss"] for record in records(tmp_path)]
    for name in ("one", "two"):
        found = [record["running_loss"] for record in records(home / name)]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_signal_to_one_process_stops_all_at_the_same_step(results):
    assert [found["stopped"] for found in results] == 2 * ["stopped by SIGTERM at step 10"]


def test_what_one_process_refuses_all_refuse(home, results):
    alike = (
        "the processes of a run must be started alike: config.seed (0 in process 0, 1 in process 1)"
    )
    workdir = f"workdir {home / 'one'} was made by another config: seed"
    for found in results:
        assert found["different"] == alike
        assert found["workdir"].startswith(workdir)
        assert found["lanes"] == (
            "the number of lanes must be a multiple of the number of processes (2), got 3"
        )


def meeting(*callers, seconds=20.0):
    """What becomes of processes that are started with (count, number): "", or why not."""
    address, found = f"127.0.0.1:{free_port()}", {}

    def meet(place, count, number):
        try:
            processes.meet(address, count, number, seconds)
            found[place] = ""
        except ConfigError as error:
            found[place] = str(error)

    threads = [threading.Thread(target=meet, args=(i, *caller)) for i, caller in enumerate(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [found[i] for i in range(len(callers))]


def test_processes_meet_in_any_order():
    assert meeting((3, 2), (3, 0), (3, 1)) == ["", "", ""]


@pytest.mark.parametrize("sent", ["GET / HTTP/1.1\n", "1\n", "\n", ""])
def test_a_stranger_at_the_port_is_passed_over(sent):
    port, found = free_port(), []
    first = threading.Thread(
        target=lambda: found.append(processes.meet(f"127.0.0.1:{port}", 2, 0, 20.0))
    )
    first.start()
    for _ in range(100):
        with contextlib.suppress(ConnectionRefusedError):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(sent.encode())
            break
        time.sleep(0.05)
    processes.meet(f"127.0.0.1:{port}", 2, 1, 20.0)
    first.join(20)
    assert found == [None]


def test_processes_that_do_not_fit_together_are_told_why():
    different = "process 0 was started with --processes=2, process 1 with 3"
    assert meeting((2, 0), (3, 1)) == [different, different]
    twice = "two processes were started with --process=1"
    assert meeting((3, 0), (3, 1), (3, 1)) == [twice, twice, twice]


def test_a_process_that_does_not_come_is_named():
    missing = "of 3 processes these have not come within 1 s: 2"
    assert meeting((3, 0), (3, 1), seconds=1.0) == [missing, missing]
    (alone,) = meeting((3, 1), seconds=0.2)
    assert alone.startswith("no process 0 has answered at 127.0.0.1:")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--processes=2"], "need --coordinator=HOST:PORT"),
        (["--coordinator=here"], "needs --processes=N and --process from 0 to N - 1"),
        (["--coordinator=here", "--processes=2", "--process=1"], "must be HOST:PORT or auto"),
        (["--coordinator=auto", "--process=1"], "goes without --processes and --process"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(arguments, said, tmp_path):
    outcome = entry.start(["--config=configs/copy.py", f"--workdir={tmp_path}", *arguments])
    assert outcome.code == 2
    assert said in outcome.error


def test_a_sweep_names_its_engines(tmp_path):
    arguments = ["--config=configs/sweep_copy.py", f"--workdir={tmp_path}", "--coordinator=auto"]
    outcome = entry.start(arguments, joins=False)
    assert outcome.code == 2
    assert "by --engine=ray or --engine=slurm" in outcome.error
