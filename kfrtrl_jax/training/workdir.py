"""The folder of a run: locked by one process at a time, and bound to one config."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kfrtrl_jax.errors import WorkdirError
from kfrtrl_jax.training import faults

CONFIG = "config.json"
LOCK = ".lock"


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Creates the folder if it does not exist, and locks it until the context ends.

    The operating system releases the lock when the process ends, for whatever reason.

    Raises:
      WorkdirError: if a running process holds the lock, or if the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / LOCK, "a+")  # noqa: SIM115 - closed below, when the lock is given up
    except OSError as error:
        raise WorkdirError(f"workdir {workdir} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise WorkdirError(
                f"workdir {workdir} is in use by the run with process id {holder}; "
                f"wait for it, stop it, or choose another --workdir"
            ) from None
        with faults.naming(workdir / LOCK):
            lock.truncate(0)
            # Without a buffer, which would fail again when the file is closed.
            os.write(lock.fileno(), f"{os.getpid()}\n".encode())
        yield


def claim(workdir: Path, config: Mapping[str, Any], free: frozenset[str] = frozenset()) -> bool:
    """Writes the resolved config to config.json, unless the folder belongs to another config.

    Args:
      workdir: a folder that this process has locked.
      config: plain nested dict.
      free: paths of the fields that may differ from those of the run so far.

    Returns:
      Whether there was a config before, that is, whether the run continues.

    Raises:
      WorkdirError: if the folder belongs to a run of another config, naming the fields that differ.
    """
    path = workdir / CONFIG
    existed = path.exists()
    new = flatten(json.loads(json.dumps(config)))
    if existed:
        old = flatten(read_json(path))
        different = [
            key
            for key in dict.fromkeys([*old, *new])
            if key not in free and old.get(key, _ABSENT) != new.get(key, _ABSENT)
        ]
        if different:
            shown = ", ".join(
                f"{key} ({_show(old, key)} there, {_show(new, key)} now)" for key in different[:3]
            )
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            raise WorkdirError(
                f"workdir {workdir} was made by another config: {shown}{more}; "
                f"choose another --workdir"
            )
    write_json(path, config)
    return existed


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """A nested dict as a flat one, keyed by paths ("task.batch_size")."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    flat = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{path}.{key}" if path else key))
    return flat


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
      WorkdirError: if it cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    with faults.naming(path):
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


_ABSENT = object()


def _show(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "not set"
