"""Signals to stop while there is something to save: the first is noted, a second one ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Collection, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):  # noqa: N818 - not an error: the run did as it was told
    """A run stopped by a signal; its message says how to continue.

    Attributes:
      exit_code: 128 plus the signal's number, the convention of shells.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_code = 128 + number


@contextlib.contextmanager
def catch_signals(numbers: Collection[int] = SIGNALS) -> Iterator[list[int]]:
    """Collects signals, by default SIGINT, SIGTERM and SIGHUP, in the list that it gives.

    After the first one the handlers are as before, so that a second one does what it did before.
    Signals that were ignored, as SIGHUP is under nohup, stay ignored. Outside the main thread nothing
    changes.
    """
    received: list[int] = []
    if not numbers or threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.getsignal(number) for number in numbers}
    previous = {
        number: old for number, old in previous.items() if old not in (signal.SIG_IGN, None)
    }

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(number: int, _: Any) -> None:
        received.append(number)
        restore()

    with _forward_later_ones(previous):
        for number in previous:
            signal.signal(number, handle)
        try:
            yield received
        finally:
            restore()


@contextlib.contextmanager
def _forward_later_ones(numbers: Collection[int]) -> Iterator[None]:
    """Keeps the first signal from the process's wakeup descriptor, and passes on all later ones.

    A program may have a thread that acts on signals at once, which it learns from that descriptor, see
    `signal.set_wakeup_fd`. A handler alone would run only when the main thread comes back from the
    device, and take two signals in that time for one.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    outer = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def forward() -> None:
        count = 0
        while data := os.read(read, 1):
            count += data[0] in numbers
            if outer >= 0 and (count > 1 or data[0] not in numbers):
                os.write(outer, data)

    thread = threading.Thread(target=forward, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(outer)
        os.close(write)
        thread.join()
        os.close(read)


def release_signals() -> None:
    """Lets signals end the process without a line from here on, if `programs.start` handles them."""
    if signal.set_wakeup_fd(-1) < 0:
        return
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
