"""The time that each chunk of a run takes on its device.

A chunk may be done long before its metrics are asked for, and to hand over a chunk may take as long as
that chunk and the one before it: on a GPU the processor waits in loops whose length the device decides.
So no moment in the loop of training tells when a chunk ended; a thread waits for each.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax


class Lap(NamedTuple):
    """A chunk that has been handed to the device.

    Attributes:
      started: when that began, of `time.monotonic`.
      ended: when its results were there.
    """

    started: float
    ended: Future[float]


class Stopwatch:
    """Times chunks that a device computes one after another."""

    def __init__(self) -> None:
        self._waiting = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stopwatch")
        self._last_end = time.monotonic()

    def lap(self, started: float, results: Any) -> Lap:
        """Begins to wait for the results of a chunk whose handing over began at some time."""
        return Lap(started, self._waiting.submit(_when_ready, results))

    def stop(self, lap: Lap) -> tuple[float, float]:
        """The seconds that the device spent on a chunk, and when it ended; waits for that.

        Laps are stopped in the order in which they began.
        """
        ended = lap.ended.result()
        seconds = ended - max(lap.started, self._last_end)
        self._last_end = ended
        return seconds, ended


def _when_ready(results: Any) -> float:
    jax.block_until_ready(results)
    return time.monotonic()
