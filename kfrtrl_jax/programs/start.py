"""What a program sets up before the imports that take seconds: signals, its output, and its last words.

This file imports only the standard library. Every program calls `begin` first if it is run as a script.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import threading
import warnings
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOW_CURSOR = b"\x1b[?25h"


def begin() -> None:
    """Makes signals, output and errors of the operating system safe for the rest of the process.

    - SIGINT, SIGTERM and SIGHUP end the process at once with exit code 128 plus their number and one
      line, also during a long compilation. A signal that is ignored, as SIGHUP under nohup, stays so.
      `kfrtrl_jax.training.signals` takes their place while there is something to save.
    - What cannot be written to standard output or standard error is dropped.
    - An OSError or ImportError that nobody handles is one line.
    """
    _open_standard_files()
    sys.stdout = tolerant(1, sys.stdout, errors="replace")
    sys.stderr = tolerant(2, sys.stderr, errors="backslashreplace")
    sys.excepthook = _last_words
    sys.unraisablehook = _unless_asyncio
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    _end_on_signals()


class TolerantFile(io.FileIO):
    """A file that takes whatever is written to it, and drops what the system refuses."""

    def write(self, data: Any) -> int:
        """Writes bytes; returns the number of those that are done with."""
        try:
            written = super().write(data)
            while written is None:
                # Another process made a shared terminal or pipe non-blocking.
                select.select([], [self], [])
                written = super().write(data)
        except OSError:
            return memoryview(data).nbytes
        return written


def tolerant(descriptor: int, like: Any, errors: str) -> io.TextIOWrapper:
    """A text stream to a file descriptor from which no write or flush fails.

    Args:
      descriptor: an open one.
      like: the stream to replace, of which the encoding is kept; None if there is none.
      errors: what becomes of characters that the encoding lacks, such as "replace".
    """
    return io.TextIOWrapper(
        io.BufferedWriter(TolerantFile(descriptor, "w", closefd=False)),
        encoding=getattr(like, "encoding", "utf-8"),
        errors=errors,
        line_buffering=True,
    )


def end(number: int) -> None:
    """Ends the process because of a signal: one line, exit code 128 plus the signal's number."""
    if not _ending.acquire(blocking=False):
        return
    line = (
        f"stopped at once by {signal.Signals(number).name}; "
        f"the same command continues from what is saved\n"
    ).encode()
    with contextlib.suppress(OSError, ValueError):
        if os.isatty(1):
            # A progress bar has hidden the cursor and left it at the bar's end.
            os.write(1, _SHOW_CURSOR + b"\n")
        # A terminal that is paused by ctrl-S does not hold up the end.
        if select.select([], [2], [], 1.0)[1]:
            os.write(2, line)
    os._exit(128 + number)


_ending = threading.Lock()


def _end_on_signals() -> None:
    """Handlers of the signals, and a thread that acts on them while the main thread is busy.

    Python runs handlers only in the main thread between its own instructions, so that they would wait
    for the end of a compilation.
    """
    caught = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    read, write = os.pipe()
    os.set_blocking(write, False)

    def watch() -> None:
        while data := os.read(read, 1):
            if data[0] in caught:
                end(data[0])

    def handle(number: int, _: FrameType | None) -> None:
        end(number)

    for number in caught:
        signal.signal(number, handle)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="signals", daemon=True).start()


def _open_standard_files() -> None:
    """Opens those of the descriptors 0 to 2 that are closed, so that no file gets their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The system gives the lowest free number.
            os.open(os.devnull, os.O_RDWR)


def _last_words(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Prints an error that nobody handled."""
    if issubclass(kind, (OSError, ImportError)):
        line = " ".join(str(error).split())
        shown = "".join(c if c.isprintable() else "?" for c in line)
        print(f"error: {shown}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def _unless_asyncio(unraisable: Any) -> None:
    """Prints an error that no caller can get, but not what event loops leave behind.

    A save that fails closes its loop, and raises its error; the loop's `__del__`, and TensorStore's
    threads, which still report to it, fail after that.
    """
    frame = unraisable.exc_traceback
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None or f"{os.sep}asyncio{os.sep}" not in frame.tb_frame.f_code.co_filename:
        sys.__unraisablehook__(unraisable)
