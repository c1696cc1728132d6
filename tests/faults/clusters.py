"""Sweeps on clusters of this machine: python -m tests.faults.clusters (needs the extras ray and slurm).

A Ray cluster of two nodes is started on the loopback, and one node is killed in the middle of a sweep;
another sweep goes through submitit's executor of local processes. All trials must finish, and have the
numbers that the engine of a single process gives, bit for bit.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from tests.faults import programs
from tests.faults.damage import outcome_of_sweep

PORT = 26379
SWEEP = """
from configs.copy import get_config
from kfrtrl_jax.training import sweep

def get_sweep():
    estimators = ["kf_rtrl", "uoro", "truncated", "rtrl"]
    return sweep.product(sweep.grid(**{"estimator.name": estimators}), sweep.seeds(2))
"""


def swept(home: Path, name: str, engine: str) -> subprocess.Popen[str]:
    """Starts the sweep on an engine."""
    arguments = (f"--config={home}/trials.py", f"--engine={engine}", f"--workdir={home / name}")
    log = open(home / f"{name}.log", "w")  # noqa: SIM115 - the process writes it
    command = programs.train(*arguments, steps=20000, program="sweep")
    return programs.start(command, home / "cache", stdout=log, stderr=subprocess.STDOUT)


def ray(*arguments: str) -> None:
    """Runs Ray's own command line."""
    command = [str(Path(sys.executable).parent / "ray"), *arguments]
    subprocess.run(command, check=True, capture_output=True, cwd=programs.ROOT)


def raylets() -> set[int]:
    """The processes that are Ray nodes."""
    return {p.pid for p in psutil.process_iter(["name"]) if p.info["name"] == "raylet"}


def kill_node(process: int) -> None:
    """Kills a node and all that runs on it, as a machine that loses its power would."""
    node = psutil.Process(process)
    for child in [*node.children(recursive=True), node]:
        child.send_signal(signal.SIGKILL)


def compare(home: Path, name: str) -> bool:
    """Whether a sweep has the numbers of the local one."""
    expected, found = (outcome_of_sweep(home / folder) for folder in ("local", name))
    wrong = [key for key in expected if not np.array_equal(expected[key], found.get(key))]
    print(f"{name}: {len(expected)} figures of 8 trials, {len(wrong)} differ {wrong}", flush=True)
    return not wrong


def on_ray(home: Path) -> bool:
    """The sweep on two nodes, one of which is killed when both have begun to save."""
    ray("start", "--head", f"--port={PORT}", "--num-cpus=1", "--include-dashboard=false")
    try:
        head = raylets()
        ray("start", f"--address=127.0.0.1:{PORT}", "--num-cpus=1")
        (second,) = raylets() - head
        process = swept(home, "ray", f"ray(address='127.0.0.1:{PORT}')")
        while len(list((home / "ray" / "groups").glob("*/checkpoint.json"))) < 2:
            if process.poll() is not None:
                print((home / "ray.log").read_text()[-2000:])
                return False
            time.sleep(0.1)
        done = len(list((home / "ray" / "trials").glob("*/summary.json")))
        kill_node(second)
        print(f"killed a node when {done} of 8 trials were finished", flush=True)
        code = process.wait()
        print(f"ray: exit {code}", flush=True)
        if code:
            print((home / "ray.log").read_text()[-2000:])
        return code == 0 and compare(home, "ray")
    finally:
        ray("stop", "--force")


def on_slurm(home: Path) -> bool:
    """The sweep through submitit's local executor."""
    code = swept(home, "slurm", "slurm(cluster='local')").wait()
    if code:
        print((home / "slurm.log").read_text()[-2000:])
    return code == 0 and compare(home, "slurm")


def main(names: Sequence[str]) -> int:
    """Runs the sweep on the named engines, all by default."""
    engines = {"ray": on_ray, "slurm": on_slurm}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "trials.py").write_text(SWEEP)
        if swept(home, "local", "local").wait():
            print((home / "local.log").read_text()[-2000:])
            return 1
        return int(not all([engines[name](home) for name in names or engines]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
