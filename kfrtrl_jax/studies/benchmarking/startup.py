"""Time from the start of `kfrtrl train` to its first chunk, and that of importing the library."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kfrtrl_jax.studies.benchmarking import timing
from kfrtrl_jax.studies.benchmarking.timing import Floor, Measurement, Work, median
from kfrtrl_jax.training.metrics import METRICS

# What is measured, and its target in seconds.
COMPILE_SUITE = {"cold cache": 10.0, "warm cache": 5.0, "imports alone": None}
# A row of its own: all public names of the library, against what they are written with.
IMPORT = "import of all public names"
_IMPORT_TARGET = 1.5
_ROOT = Path(__file__).parents[3]
_TIMEOUT_SECONDS = 600


def measure_startup(
    what: str, arguments: Sequence[str], *, suite: str, n: int, batch: int, rounds: int = 3
) -> Measurement:
    """Measures an entry of COMPILE_SUITE. The floor is the target time, so the target ratio is 1.

    Args:
      what: a key of COMPILE_SUITE.
      arguments: of `kfrtrl train`, such as --config=copy.
      suite: the suite's name.
      n: of that config, for the record.
      batch: of that config, for the record.
      rounds: the number of processes timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if what == "imports alone":
            seconds = [import_seconds() for _ in range(rounds)]
        elif what == "cold cache":
            seconds = [
                first_chunk_seconds(arguments, place / f"run{i}", place / f"cache{i}")
                for i in range(rounds)
            ]
        else:
            first_chunk_seconds(arguments, place / "first", place / "cache")
            seconds = [
                first_chunk_seconds(arguments, place / f"run{i}", place / "cache")
                for i in range(rounds)
            ]
    target = COMPILE_SUITE[what]
    limit = target or median(seconds)
    ratio = median(seconds) / limit
    return Measurement(
        suite,
        f"start of training, {what}",
        n,
        batch,
        ratio,
        min(seconds) / limit,
        max(seconds) / limit,
        limit,
        median(seconds),
        None if target is None else 1.0,
        None if target is None else ratio <= 1,
        "itself" if target is None else f"{target:g} s",
        [(value, limit) for value in seconds],
    )


def measure_import(*, suite: str, rounds: int = 9) -> Measurement:
    """Measures the import of the library, in processes that alternate with those of the floor."""
    return timing.compare(
        Work(lambda: _start("from kfrtrl_jax import *"), 1),
        Floor("import jax, optax", Work(lambda: _start("import jax, optax"), 1)),
        suite=suite,
        name=IMPORT,
        n=0,
        batch=0,
        target=_IMPORT_TARGET,
        rounds=rounds,
    )


def first_chunk_seconds(arguments: Sequence[str], workdir: Path, cache: Path) -> float:
    """Seconds until the first line of metrics is written; the process is then killed.

    Raises:
      RuntimeError: if no line appears.
    """
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "kfrtrl_jax", "train", *arguments, f"--workdir={workdir}"]
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            while time.perf_counter() < start + _TIMEOUT_SECONDS:
                metrics = workdir / METRICS
                if metrics.exists() and b"\n" in metrics.read_bytes():
                    return time.perf_counter() - start
                if process.poll() is not None:
                    break
                time.sleep(0.005)
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        raise RuntimeError(f"no first chunk of {' '.join(command)}: {errors.read().strip()[-500:]}")


def import_seconds() -> float:
    """Seconds for a process that only imports the training program."""
    start = time.perf_counter()
    _start("import kfrtrl_jax.programs.train")
    return time.perf_counter() - start


def _start(statement: str) -> None:
    """Runs a statement in a new process."""
    subprocess.run([sys.executable, "-c", statement], cwd=_ROOT, check=True)
