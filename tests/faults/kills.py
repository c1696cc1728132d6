"""Kills a run and a sweep again and again, and checks that they end as if nothing had happened.

    python -m tests.faults.kills --run=50 --sweep=20

A process is started, killed by SIGKILL at a random moment, and started again; at last it is left alone.
Its numbers must be those of a process that was never killed, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.damage import outcome_of_run, outcome_of_sweep

ROOT = Path(__file__).parents[2]
SMALL = [
    "--config.cell.name=vanilla",
    "--config.cell.hidden_size=4",
    "--config.task.batch_size=2",
    "--config.log_every=20",
    "--config.checkpoint_every=200",
]
SWEEP = """
from configs.copy import get_config
from kfrtrl_jax.training import sweep

def get_sweep():
    estimators = sweep.grid(**{"estimator.name": ["kf_rtrl", "uoro"]})
    return sweep.product(estimators, sweep.seeds(3))
"""


def start(program: str, arguments: list[str], cache: Path) -> subprocess.Popen[str]:
    """Starts a program of `experiments`."""
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{program}", *SMALL, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)},
        cwd=ROOT,
    )


def finish(program: str, arguments: list[str], cache: Path) -> float:
    """Runs a program to its end; the seconds it took."""
    begun = time.monotonic()
    process = start(program, arguments, cache)
    _, errors = process.communicate()
    if process.returncode or errors:
        raise RuntimeError(f"{program} ended with {process.returncode}: {errors}")
    return time.monotonic() - begun


def killed(program: str, arguments: list[str], kills: int, home: Path, seed: int) -> int:
    """Kills a program many times; how many of its figures differ from those of one left alone."""
    cache, moments = home / "cache", random.Random(seed)
    whole, parts = home / f"{program}_whole", home / f"{program}_parts"
    finish(program, [*arguments, f"--workdir={whole}"], cache)
    done = 0
    while done < kills:
        process = start(program, [*arguments, f"--workdir={parts}"], cache)
        try:
            # Some kills come before the first step, most of them while it runs or saves.
            process.wait(timeout=moments.uniform(1.0, 8.0))
        except subprocess.TimeoutExpired:
            process.kill()
            done += 1
        _, errors = process.communicate()
        if errors or process.returncode not in (0, -9):
            raise RuntimeError(f"{program} ended with {process.returncode}: {errors}")
        if process.returncode == 0:
            break
    finish(program, [*arguments, f"--workdir={parts}"], cache)
    read = outcome_of_run if program == "train" else outcome_of_sweep
    expected, found = read(whole), read(parts)
    wrong = [name for name in expected if not np.array_equal(expected[name], found[name])]
    print(f"{program}: killed {done} times; {len(expected)} figures, {len(wrong)} differ {wrong}")
    return len(wrong)


def main() -> int:
    """Kills a run and a sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=int, default=50)
    parser.add_argument("--sweep", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "trials.py").write_text(SWEEP)
        runs: list[tuple[str, list[str], int]] = [
            ("train", ["--config=configs/copy.py", "--config.num_steps=100000"], options.run),
            ("sweep", [f"--config={home}/trials.py", "--config.num_steps=150000"], options.sweep),
        ]
        wrong: list[Any] = [killed(*each, home, options.seed) for each in runs if each[2]]
    return int(sum(wrong) > 0)


if __name__ == "__main__":
    sys.exit(main())
