"""Slurm's commands as far as submitit uses them, on this machine: for tests of what is submitted.

Jobs are processes, one per task of an array, at once. `scontrol requeue` starts one again when it ends.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scontrol", "scancel")
NUMBER = 4321


def install(folder: Path) -> None:
    """Writes the commands to a folder, which is to be put on the PATH."""
    folder.mkdir()
    for name in COMMANDS:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {folder} {name} "$@"\n')
        path.chmod(0o755)


def sbatch(folder: Path, script: str) -> None:
    """Starts the tasks of an array, each watched by a process of its own."""
    text = Path(script).read_text()
    (folder / "script").write_text(text)
    last = re.search(r"--array=0-(\d+)", text)
    for task in range(int(last[1]) + 1 if last else 1):
        state(folder, task, "PENDING")
        command = [sys.executable, __file__, str(folder), "task", str(task)]
        nothing = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen(command, start_new_session=True, **nothing)
    print(f"Submitted batch job {NUMBER}")


def task(folder: Path, number: str) -> None:
    """Runs a task of the array until it ends without having been requeued."""
    names = {"JOB_ID": NUMBER + int(number), "ARRAY_JOB_ID": NUMBER, "ARRAY_TASK_ID": number}
    names |= {"NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_NUM_NODES": 1}
    environment = {**os.environ, **{f"SLURM_{name}": str(value) for name, value in names.items()}}
    requeued = folder / f"{NUMBER}_{number}.requeued"
    while True:
        requeued.unlink(missing_ok=True)
        state(folder, number, "RUNNING")
        code = subprocess.call(["bash", str(folder / "script")], env=environment)
        if not requeued.exists():
            state(folder, number, "FAILED" if code else "COMPLETED")
            return


def state(folder: Path, number: int | str, word: str) -> None:
    """Writes down the state of a task."""
    (folder / f"{NUMBER}_{number}.state").write_text(word)


def srun(folder: Path, *arguments: str) -> None:
    """Runs a command, with its output where it is wanted."""
    rest, files = list(arguments), {}
    while rest[0].startswith("--"):
        option = rest.pop(0)
        if option in ("--output", "--error"):
            job = os.environ["SLURM_ARRAY_TASK_ID"]
            name = rest.pop(0).replace("%A", str(NUMBER)).replace("%a", job)
            files[option] = open(name.replace("%t", "0"), "a")  # noqa: SIM115
    sys.exit(subprocess.call(rest, stdout=files["--output"], stderr=files["--error"]))


def sacct(folder: Path, *_: str) -> None:
    """Lists the states of all tasks."""
    print("JobID|State|NodeList")
    for path in folder.glob("*.state"):
        print(f"{path.stem}|{path.read_text()}|here")


def scontrol(folder: Path, _: str, job: str) -> None:
    """Has a task started again."""
    (folder / f"{job}.requeued").touch()


def scancel(folder: Path, job: str) -> None:
    """Notes it."""
    (folder / f"{job}.cancelled").touch()


def main(arguments: Sequence[str]) -> None:
    """Does what a command would."""
    folder, name, *rest = arguments
    globals()[name](Path(folder), *rest)


if __name__ == "__main__":
    main(sys.argv[1:])
