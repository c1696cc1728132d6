"""The program as its users start it, in separate processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import chex
import jax
import pytest

from kfrtrl_jax.errors import WorkdirError
from kfrtrl_jax.training import metrics, train, workdir
from tests.faults import entry
from tests.training.small import records

SMALL = [
    "--config=configs/copy.py",
    "--config.estimator=kf_rtrl",
    "--config.segment_length=1",
    "--config.cell.name=vanilla",
    "--config.cell.hidden_size=4",
    "--config.task.batch_size=2",
    "--config.log_every=20",
    "--config.checkpoint_every=100",
    "--config.num_steps=2000",
]


def start(*arguments: str) -> subprocess.Popen[str]:
    """Starts experiments.train from the repository's root."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.02",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
    )


def wait_for_step(run: subprocess.Popen[str], folder, step: int) -> None:
    """Until the run has logged a step."""
    path = folder / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and run.poll() is None:
        lines = metrics.read(path) if path.exists() else []
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"no step {step}: {run.communicate()}")


def test_refused_input_is_one_line_and_exit_code_2(tmp_path):
    arguments = ["--config=configs/ptb.py", "--config.task.data_dir=/none"]
    outcome = entry.start([*arguments, f"--workdir={tmp_path / 'run'}"], begin=train.train)
    assert outcome.code == 2
    assert outcome.error.startswith("error: /none has no ptb.train.txt")
    assert outcome.error.count("\n") == 1
    assert outcome.out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.estimator.name=kfrtrl",
            "error: config.estimator.name: there is no estimator 'kfrtrl'; did you mean kf_rtrl",
        ),
        ("--workdri=x", "error: Unknown command line flag 'workdri'. Did you mean: workdir ?"),
    ],
)
def test_a_typo_is_one_line_and_exit_code_2(argument, message):
    outcome = entry.start(["--config=configs/copy.py", argument])
    assert outcome.code == 2
    assert outcome.error.startswith(message)
    assert outcome.error.count("\n") == 1


def test_a_run_that_fails_is_one_line_and_exit_code_1(tmp_path):
    rate = ["--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e307"]
    arguments = [*SMALL, "--config.estimator=truncated", *rate, f"--workdir={tmp_path / 'run'}"]
    outcome = entry.start(arguments, begin=train.train)
    assert outcome.code == 1
    assert " is no longer finite at step " in outcome.error
    assert outcome.error.count("\n") == 1


def test_a_run_stopped_and_killed_and_resumed_is_the_run_that_was_left_alone(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # The uninterrupted run compiles, in this process, for the processor; the others may use its cache.
    with jax.enable_x64(False), jax.default_device(jax.devices("cpu")[0]):
        alone = entry.start([*SMALL, f"--workdir={whole}"], begin=train.train)
    assert (alone.code, alone.error) == (0, "")
    assert "running loss" in alone.out
    first = start(*SMALL, f"--workdir={parts}")
    wait_for_step(first, parts, 200)
    with pytest.raises(WorkdirError, match=f"process id {first.pid};"), workdir.hold(parts):
        pass
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=300)
    assert first.returncode == 143
    assert err.startswith("stopped by SIGTERM at step ")
    assert f"--workdir={parts} continues" in err
    assert "linearization checked against jax.vjp in float64: largest deviation " in out
    stopped = metrics.read(parts / "metrics.jsonl")[-1]["step"]

    second = start(*SMALL, f"--workdir={parts}")
    wait_for_step(second, parts, stopped + 300)
    second.kill()
    second.communicate(timeout=300)
    assert second.returncode == -signal.SIGKILL

    third = start(*SMALL, f"--workdir={parts}")
    out, err = third.communicate(timeout=300)
    assert third.returncode == 0, err
    assert err == ""
    assert f"continuing {parts} at step" in out

    assert records(parts) == records(whole)
    final = [load(folder / "final" / "state") for folder in (parts, whole)]
    chex.assert_trees_all_equal(*final)
    last = [load(folder / "checkpoints" / "2000" / "state") for folder in (parts, whole)]
    chex.assert_trees_all_equal(*last)


def load(folder):
    """All arrays in a folder that Orbax wrote, by name."""
    import orbax.checkpoint as ocp

    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    return checkpointer.restore(folder, args=ocp.args.StandardRestore())
