"""Kills a run and a sweep again and again, and checks that they end as if nothing had happened.

    python -m tests.faults.kills --run=50 --sweep=20

A process is started, killed by SIGKILL at a random moment, and started again; at last it is left alone.
Its numbers must be those of a process that was never killed, bit for bit.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults import programs
from tests.faults.damage import outcome_of_run, outcome_of_sweep

SWEEP = """
from configs.copy import get_config
from kfrtrl_jax.training import sweep

def get_sweep():
    estimators = sweep.grid(**{"estimator.name": ["kf_rtrl", "uoro"]})
    return sweep.product(estimators, sweep.seeds(3))
"""


def finish(command: Sequence[str], cache: Path) -> None:
    """Runs a program to its end."""
    process = programs.start(command, cache, stdout=subprocess.DEVNULL)
    _, errors = process.communicate()
    if process.returncode or errors:
        raise RuntimeError(f"the program ended with {process.returncode}: {errors}")


def killed(program: str, arguments: list[str], kills: int, home: Path, seed: int) -> int:
    """Kills a program many times; how many of its figures differ from those of one left alone."""
    cache, moments = home / "cache", random.Random(seed)
    whole, parts = home / f"{program}_whole", home / f"{program}_parts"
    command, again = (
        programs.train(*arguments, f"--workdir={folder}", program=program)
        for folder in (whole, parts)
    )
    finish(command, cache)
    done = 0
    while done < kills:
        process = programs.start(again, cache, stdout=subprocess.DEVNULL)
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
    finish(again, cache)
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
            ("train", ["--config.num_steps=100000"], options.run),
            ("sweep", [f"--config={home}/trials.py", "--config.num_steps=150000"], options.sweep),
        ]
        wrong: list[Any] = [killed(*each, home, options.seed) for each in runs if each[2]]
    return int(sum(wrong) > 0)


if __name__ == "__main__":
    sys.exit(main())
