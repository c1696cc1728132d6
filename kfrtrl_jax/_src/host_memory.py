"""The memory of the host, for arrays that are made while a program is built."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Iterator

_record: contextvars.ContextVar[list[int] | None] = contextvars.ContextVar("record", default=None)


def available() -> int:
    """Bytes that the system has available; more than any where psutil, which knows, is missing."""
    try:
        import psutil
    except ModuleNotFoundError:
        return sys.maxsize
    return psutil.virtual_memory().available


def require_memory(what: str, count: int) -> None:
    """Refuses to make what the host cannot hold, as the system would stop the process for it.

    Args:
      what: is made, for the message.
      count: bytes that it takes.

    Raises:
      MemoryError: with the memory needed and the memory available.
    """
    if (record := _record.get()) is not None:
        record.append(count)
    free = available()
    if count > free:
        needs, has = (f"{number / 2**30:,.2f} GiB" for number in (count, free))
        raise MemoryError(f"{what} needs {needs} of the host's memory and {has} are available")


@contextlib.contextmanager
def recorded() -> Iterator[list[int]]:
    """Collects the bytes that `require_memory` is asked for, until the context ends."""
    counts: list[int] = []
    token = _record.set(counts)
    try:
        yield counts
    finally:
        _record.reset(token)
