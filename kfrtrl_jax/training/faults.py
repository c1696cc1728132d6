"""Faults of the operating system in words: what could not be written, why, and what is still good."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the path to errors of the system that lack one, as those of a full disk do."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def in_words(error: BaseException) -> str:
    """An error of the system as "file: reason"; another error in one line.

    TensorStore, with which Orbax writes, has errors of its own that end with the system's number.
    """
    if isinstance(error, OSError) and error.strerror:
        named = error.filename is not None
        return f"{error.filename}: {error.strerror}" if named else error.strerror
    if number := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(number[1]))
    return " ".join(str(error).split())[:200] or type(error).__name__


def what_is_saved(workdir: Path) -> str:
    """Says which checkpoint of a run is the newest whole one, in whatever state its folder is."""
    steps: list[int] = []
    with contextlib.suppress(OSError):
        # Orbax gives a checkpoint this name when it is whole.
        steps = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    if (workdir / "groups").is_dir():
        return "results so far and the last whole checkpoint of each group are kept"
    return (
        f"the last whole checkpoint is of step {max(steps)}" if steps else "there is no checkpoint"
    )


def printable(text: str, keep: str = "") -> str:
    """Text without the power to control a terminal.

    Args:
      text: from a user, a file or an error.
      keep: control characters that stay as they are, such as line breaks.

    Returns:
      The text with all others, and what reorders or hides text, written as in Python ("\\x1b").
    """
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
