"""Programs in processes of their own, for scripts that do faults to them for real.

Each script prints what it did and how many of its checks failed, and exits with 1 if any did.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kfrtrl_jax.training import metrics

ROOT = Path(__file__).parents[2]
# Steps of a run that takes about as long as its start.
STEPS = 8000


def train(*arguments: str, steps: int = STEPS, program: str = "train") -> list[str]:
    """The command of a small run or sweep, with further arguments, of which later ones count."""
    return [
        *(sys.executable, "-m", f"experiments.{program}"),
        "--config=configs/copy.py",
        "--config.estimator=kf_rtrl",
        "--config.segment_length=1",
        "--config.cell.name=vanilla",
        "--config.cell.hidden_size=4",
        "--config.task.batch_size=2",
        "--config.log_every=20",
        "--config.checkpoint_every=400",
        f"--config.num_steps={steps}",
        *arguments,
    ]


def start(command: Sequence[str], cache: Path | None, **options: Any) -> subprocess.Popen[str]:
    """Starts a command in the repository's root; compiled programs are kept in the folder, if given."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **options.pop("environment", {})}
    if cache is None:
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "0"
    else:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen(list(command), env=environment, cwd=ROOT, **options)


def run(command: Sequence[str], cache: Path | None, **options: Any) -> tuple[int, str, str]:
    """Runs a command: its exit code, what it printed, and its errors."""
    process = start(command, cache, **options)
    out, err = process.communicate(timeout=200)
    return process.returncode, out or "", err or ""


def wait_until_caught(process: subprocess.Popen[str], number: int = signal.SIGHUP) -> None:
    """Until the process has handlers; before that, Python is still starting.

    SIGHUP gets its handler last.
    """
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        for line in status.read_text().splitlines():
            if line.startswith("SigCgt:") and int(line.split()[1], 16) >> (number - 1) & 1:
                return
        time.sleep(0.002)


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Until the process has logged a step, or has ended."""
    path = folder / metrics.METRICS
    while process.poll() is None:
        records = metrics.read(path) if path.exists() else []
        if records and records[-1]["step"] >= step:
            return
        time.sleep(0.01)


class Checks:
    """Counts checks, and prints those that fail."""

    def __init__(self) -> None:
        self.done = self.failed = 0

    def check(self, holds: bool, what: str) -> None:
        """Counts a check."""
        self.done += 1
        if not holds:
            self.failed += 1
            print(f"FAILED: {what}", flush=True)

    def one_line(self, err: str, what: str) -> None:
        """Checks that a program's errors are one line and no traceback."""
        self.check(err.count("\n") == 1 and "Traceback" not in err, f"{what}: {err[:500]!r}")

    def finish(self) -> None:
        """Prints the counts and exits."""
        print(f"{self.done} checks, {self.failed} failed", flush=True)
        sys.exit(1 if self.failed else 0)


def temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder for runs."""
    return tempfile.TemporaryDirectory(prefix="faults-")
