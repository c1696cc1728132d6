"""The folder of a run: locked by one process at a time, bound to one config, and nothing in it lost.

What a program writes here for itself to read again are documents: JSON with a digest of its own
contents, so that a document is either as it was written or refused. What is in the way is moved to
set_aside/, never deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from kfrtrl_jax.errors import WorkdirError
from kfrtrl_jax.training import faults

CONFIG = "config.json"
SUMMARY = "summary.json"
LOCK = ".lock"
SET_ASIDE = "set_aside"
_DIGEST = "sha256"


class DamagedError(WorkdirError):
    """A document whose bytes are not those that were written."""


@contextlib.contextmanager
def hold(workdir: Path, patience: float = 0.0) -> Iterator[None]:
    """Creates the folder if it does not exist, and locks it until the context ends.

    The operating system releases the lock when the process ends, for whatever reason.

    Args:
      workdir: the folder.
      patience: seconds to wait for a process that holds the lock, such as one that is being ended.

    Raises:
      WorkdirError: if a running process holds the lock, or if the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / LOCK, "a+")  # noqa: SIM115 - closed below, when the lock is given up
    except OSError as error:
        raise WorkdirError(f"workdir {workdir} cannot be written: {error.strerror}") from error
    with lock:
        if not _locked(lock, patience):
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise WorkdirError(
                f"workdir {workdir} is in use by the run with process id {holder}; "
                f"wait for it, stop it, or choose another --workdir"
            )
        with faults.naming(workdir / LOCK):
            lock.truncate(0)
            # Without a buffer, which would fail again when the file is closed.
            os.write(lock.fileno(), f"{os.getpid()}\n".encode())
        yield


def _locked(lock: TextIO, patience: float) -> bool:
    """Locks an open file, if it becomes free in time."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.2)


def claim(
    workdir: Path,
    config: Mapping[str, Any],
    free: frozenset[str] = frozenset(),
    completed: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda stored: stored,
) -> list[str]:
    """Writes the resolved config to config.json, unless the folder belongs to another config.

    Args:
      workdir: a folder that this process has locked.
      config: plain nested dict.
      free: paths of the fields that may differ from those of the run so far.
      completed: from a config in a file to one with all fields that there are now.

    Returns:
      What the user should know, in lines: that a damaged config.json was set aside.

    Raises:
      WorkdirError: if the folder belongs to a run of another config, naming the fields that differ.
    """
    path, notes = workdir / CONFIG, []
    try:
        old = read_document(path) if path.exists() else None
    except DamagedError as error:
        notes, old = [f"{error}; moved to {set_aside(path)} and written anew"], None
    if old is not None and (different := differences(completed(old), config, free)):
        raise WorkdirError(
            f"workdir {workdir} was made by another config: {different}; choose another --workdir"
        )
    write_document(path, config)
    return notes


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], free: frozenset[str] = frozenset()
) -> str:
    """The first fields in which two nested dicts differ, in words; "" if they are the same."""
    there, now = flatten(plain(old)), flatten(plain(new))
    different = [
        key
        for key in dict.fromkeys([*there, *now])
        if key not in free and there.get(key, _ABSENT) != now.get(key, _ABSENT)
    ]
    shown = ", ".join(
        f"{key} ({_show(there, key)} there, {_show(now, key)} now)" for key in different[:3]
    )
    return f"{shown} and {len(different) - 3} more" if len(different) > 3 else shown


def set_aside(path: Path, workdir: Path | None = None) -> Path:
    """Moves a file or folder to WORKDIR/set_aside/ under a name that is free; returns where it is now.

    Args:
      path: what is in the way.
      workdir: the folder of the run; that of `path` if None.
    """
    folder = (workdir or path.parent) / SET_ASIDE
    folder.mkdir(exist_ok=True)
    place, number = folder / path.name, 1
    while place.exists():
        number += 1
        place = folder / f"{path.name}.{number}"
    os.replace(path, place)
    return place


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """A nested dict as a flat one, keyed by paths ("task.batch_size")."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    flat = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{path}.{key}" if path else key))
    return flat


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, _as_json(value))


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def read_document(path: Path) -> dict[str, Any]:
    """The contents of a document that `write_document` wrote.

    Raises:
      WorkdirError: if it cannot be read.
      DamagedError: if it is not as it was written.
    """
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise WorkdirError(f"{path} cannot be read: {error.strerror}") from error
    return parse_document(contents, path)


def parse_document(contents: bytes, name: Path | str) -> dict[str, Any]:
    """The contents of a document, from its bytes.

    Raises:
      DamagedError: if they are not as they were written; it begins with the name.
    """
    try:
        value = json.loads(contents)
        digest = value.pop(_DIGEST)
    except (ValueError, LookupError, AttributeError, TypeError):
        digest = value = None
    if value is None or digest != digest_of(value):
        raise DamagedError(f"{name} is not as it was written")
    return value


def write_document(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a mapping as a JSON file with a digest of its contents, atomically."""
    write_text(path, document(value))


def document(value: Mapping[str, Any]) -> str:
    """A mapping as the text of a JSON file with a digest of its contents."""
    value = plain(value)
    return _as_json({**value, _DIGEST: digest_of(value)})


def plain(value: Any) -> Any:
    """A nested dict as it comes back from a JSON file: lists for tuples."""
    return json.loads(json.dumps(value))


def as_text(value: Mapping[str, Any]) -> str:
    """A nested dict as JSON that is the same for equal dicts."""
    return json.dumps(value, sort_keys=True)


def digest_of(value: Mapping[str, Any]) -> str:
    """The sha256 of a nested dict, in hexadecimal digits."""
    return hashlib.sha256(as_text(value).encode()).hexdigest()


def with_ending(prefix: Path, ending: str) -> Path:
    """The file PREFIX.ending; a prefix such as runs/rate_0.5 stays whole."""
    return prefix.with_name(f"{prefix.name}.{ending}")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically."""
    with replacing(path) as file:
        file.write(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A file to write that takes the place of `path` at the end, whole, or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with faults.naming(path):
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


_ABSENT = object()


def _show(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "not set"
