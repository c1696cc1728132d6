"""Runs millions of steps at small size, and checks that the memory of the process does not grow.

python -m tests.faults.soak --steps=10000000
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from kfrtrl_jax.training import metrics
from tests.faults import programs

# The memory of the first part of the run, in which caches fill, does not count.
SETTLED, ALLOWED = 0.1, 0.01


def main() -> int:
    """Runs one process and samples its resident memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000_000)
    options = parser.parse_args()
    every = options.steps // 1000
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / metrics.METRICS
        command = programs.train(
            f"--config.log_every={every}",
            f"--config.checkpoint_every={50 * every}",
            f"--workdir={folder}",
            steps=options.steps,
        )
        process = programs.start(command, None, stdout=subprocess.DEVNULL, stderr=None)
        samples: list[tuple[int, int]] = []
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(1.0)
            lines = log.read_bytes().count(b"\n") if log.exists() else 0
            try:
                samples.append((lines * every, watched.memory_info().rss))
            except psutil.NoSuchProcess:
                break
        if process.wait():
            print(f"the run ended with {process.returncode}")
            return 1
    later = [memory for step, memory in samples if step >= SETTLED * options.steps]
    growth = max(later) / later[0] - 1
    for step, memory in samples[:: max(1, len(samples) // 20)]:
        print(f"step {step:>12,}  {memory / 2**20:8.1f} MiB")
    print(f"{options.steps:,} steps; memory after the first {SETTLED:.0%} grew by {growth:.2%}")
    return int(growth > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
