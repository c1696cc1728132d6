"""Sweeps on clusters of this machine: python -m tests.faults.clusters (needs the extras ray and slurm).

- `ray`: a Ray cluster of two nodes is started on the loopback, and one is killed during a sweep.
- `ray_storage`: the same where the nodes share a storage but no folder.
- `ray_driver`: the program that has started the sweep is killed, and started again.
- `slurm`: a sweep through submitit's executor of local processes.

All trials must finish, and have the numbers that the engine of a single process gives, bit for bit. No
trial that had finished may be started again, and no step before a checkpoint may be run twice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from kfrtrl_jax.training import checkpoints, metrics, workdir
from tests.faults import programs
from tests.faults.damage import outcome_of_sweep

PORT = 26379
ADDRESS = f"127.0.0.1:{PORT}"
STEPS, EVERY, SAVE_EVERY = 20000, 20, 400
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
    command = programs.train(*arguments, steps=STEPS, program="sweep")
    return programs.start(command, home / "cache", stdout=log, stderr=subprocess.STDOUT)


@contextlib.contextmanager
def cluster(home: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two nodes of one processor each, with folders of their own for temporary files."""
    nodes = []
    try:
        for name, address in (("head", f"--head --port={PORT}"), ("node", f"--address={ADDRESS}")):
            scratch = home / name
            scratch.mkdir(exist_ok=True)
            command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1"]
            options = "--include-dashboard=false".split() if name == "head" else []
            log = open(home / f"{name}.log", "w")  # noqa: SIM115 - the process writes it
            nodes.append(
                programs.start(
                    [*command, *options, *address.split()],
                    home / "cache",
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    environment={"TMPDIR": str(scratch)},
                )
            )
            wait_until_open(nodes[0])
        yield nodes
    finally:
        for node in nodes:
            kill_tree(node)


def wait_until_open(head: subprocess.Popen[str]) -> None:
    """Until the head of the cluster takes connections."""
    while head.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORT), 1.0):
            return
        time.sleep(0.2)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Kills a process and all that it has started, as a machine that loses its power would."""
    with contextlib.suppress(psutil.NoSuchProcess):
        tree = psutil.Process(process.pid)
        for each in [*tree.children(recursive=True), tree]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)
    process.wait()


def tasks() -> list[psutil.Process]:
    """The processes that run groups."""
    return [p for p in psutil.process_iter(["name"]) if p.info["name"].startswith("ray::_run")]


def finished(folder: Path) -> dict[str, int]:
    """When the summaries of the trials were written that have a result."""
    results = folder / "sweep.json"
    rows = workdir.read_document(results)["trials"] if results.exists() else []
    names = [row["trial"] for row in rows if row["result"] is not None]
    return {n: (folder / "trials" / n / "summary.json").stat().st_mtime_ns for n in names}


def is_halfway(home: Path, name: str, node: subprocess.Popen[str]) -> bool:
    """Whether a node runs a group that has saved and is not near its end."""
    with contextlib.suppress(psutil.NoSuchProcess):
        pids = {str(child.pid) for child in psutil.Process(node.pid).children(recursive=True)}
        for groups in [home / name / "groups", *home.glob("*/kfrtrl_jax-*/groups")]:
            for lock in groups.glob("*/.lock"):
                step = checkpoints.last_written(lock.parent) or 0
                if lock.read_text().strip() in pids and 0 < step < STEPS // 2:
                    return True
    return False


def wait_until_halfway(
    process: subprocess.Popen[str], home: Path, name: str, nodes: Sequence[subprocess.Popen[str]]
) -> None:
    """Until a trial is finished, and the nodes are in the middle of others; or until the sweep ends."""
    while process.poll() is None:
        if finished(home / name) and all(is_halfway(home, name, node) for node in nodes):
            return
        time.sleep(0.01)


def compare(home: Path, name: str) -> bool:
    """Whether a sweep has the numbers of the local one."""
    expected, found = (outcome_of_sweep(home / folder) for folder in ("local", name))
    wrong = [key for key in expected if not np.array_equal(expected[key], found.get(key))]
    print(f"{name}: {len(expected)} figures of 8 trials, {len(wrong)} differ {wrong}", flush=True)
    return not wrong


def none_twice(home: Path, name: str, before: dict[str, int], losses: int) -> bool:
    """Whether what had been done was not done again.

    Without a storage, lines of chunks that are run again are in set_aside/. With one they were in the
    scratch folder of the process that was killed.

    Args:
      home: of the sweeps.
      name: of the sweep.
      before: the trials that were finished when something was killed.
      losses: how often something was.
    """
    now, repeated, wrong = finished(home / name), 0, []
    wrong += [f"trial {trial} ran again" for trial, at in before.items() if now[trial] != at]
    for folder in sorted((home / name / "trials").iterdir()):
        steps = [record["step"] for record in metrics.read(folder / "metrics.jsonl")]
        if steps != list(range(EVERY, STEPS + 1, EVERY)):
            wrong.append(f"trial {folder.name} has not logged each step once")
        again = [r["step"] for r in metrics.read(folder / "set_aside" / "metrics.jsonl")]
        repeated += len(again)
        # What comes after a checkpoint is run again, and no more than that.
        if len(again) > losses * SAVE_EVERY // EVERY:
            wrong.append(f"trial {folder.name} has run {len(again)} chunks again")
    print(
        f"{name}: {len(before)} trials were finished before; {repeated} of {8 * STEPS // EVERY} chunks "
        f"were run again, since the last checkpoints; wrong: {wrong}",
        flush=True,
    )
    return not wrong


def ended_well(process: subprocess.Popen[str], home: Path, name: str) -> bool:
    """Waits for a sweep; shows its log if it has failed."""
    code = process.wait()
    print(f"{name}: exit {code}", flush=True)
    if code:
        print((home / f"{name}.log").read_text()[-2000:])
    return code == 0


def lose_a_node(home: Path, name: str, engine: str) -> bool:
    """A sweep on two nodes, one of which is killed in the middle of a group."""
    with cluster(home) as (_, second):
        process = swept(home, name, engine)
        wait_until_halfway(process, home, name, [second])
        before = finished(home / name)
        kill_tree(second)
        print(f"{name}: killed a node when {len(before)} of 8 trials were finished", flush=True)
        well = ended_well(process, home, name)
    return well and compare(home, name) and none_twice(home, name, before, 1)


def on_ray(home: Path) -> bool:
    """A node is lost; both see the sweep's folder."""
    return lose_a_node(home, "ray", f"ray(address='{ADDRESS}')")


def on_ray_with_storage(home: Path) -> bool:
    """A node is lost; they share nothing but the storage."""
    engine = f"ray(address='{ADDRESS}', storage='file://{home}/bucket')"
    well = lose_a_node(home, "ray_storage", engine)
    left = [len(list((home / node).glob("kfrtrl_jax-*"))) for node in ("head", "node")]
    print(f"ray_storage: scratch folders left on the nodes: {left}", flush=True)
    return well and left == [0, 1]


def after_a_lost_driver(home: Path) -> bool:
    """The program that waits for the sweep is killed, and started again at once."""
    name = "ray_driver"
    engine = f"ray(address='{ADDRESS}', storage='file://{home}/bucket_driver')"
    with cluster(home) as nodes:
        process = swept(home, name, engine)
        wait_until_halfway(process, home, name, nodes)
        before, old = finished(home / name), tasks()
        process.kill()
        process.wait()
        killed_at = time.monotonic()
        process = swept(home, name, engine)
        _, alive = psutil.wait_procs(old, timeout=60)
        print(
            f"{name}: killed when {len(before)} of 8 trials were finished; of its {len(old)} tasks "
            f"{len(alive)} were alive after {time.monotonic() - killed_at:.1f} s",
            flush=True,
        )
        well = ended_well(process, home, name) and not alive
    return well and compare(home, name) and none_twice(home, name, before, 1)


def on_slurm(home: Path) -> bool:
    """The sweep through submitit's local executor."""
    process = swept(home, "slurm", "slurm(cluster='local')")
    return ended_well(process, home, "slurm") and compare(home, "slurm")


def main(names: Sequence[str]) -> int:
    """Runs the sweep on the named engines, all by default."""
    # Ray's nodes and programs know each other by a token.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=uuid.uuid4().hex)
    engines = {
        "ray": on_ray,
        "ray_storage": on_ray_with_storage,
        "ray_driver": after_a_lost_driver,
        "slurm": on_slurm,
    }
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "trials.py").write_text(SWEEP)
        if swept(home, "local", "local").wait():
            print((home / "local.log").read_text()[-2000:])
            return 1
        return int(not all([engines[name](home) for name in names or engines]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
