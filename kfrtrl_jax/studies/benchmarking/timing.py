"""Two programs timed in turn, and the row of a table that comes of it.

Absolute times say little on a shared machine. Runs of the thing measured alternate with runs of its
floor in one process, and a row is the ratio of their medians, with the smallest and the largest of the
rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

# A run is made at least this long by calling it several times: clocks and schedulers are coarse.
_LEAST_SECONDS = 0.1


class Work(NamedTuple):
    """Something that can be run again and again.

    Attributes:
      run: what to call; it returns arrays to wait for.
      steps: time steps that one call makes.
    """

    run: Callable[[], Any]
    steps: int


class Floor(NamedTuple):
    """What a measurement is compared with.

    Attributes:
      words: what it is.
      work: the same as a program.
      seconds: for one time step, as far as is known before the rounds.
    """

    words: str
    work: Work
    seconds: float = float("nan")


class Measurement(NamedTuple):
    """One measurement. What a suite does not measure is None.

    Attributes:
      suite: the suite's name.
      name: what was measured.
      n: the cell's hidden size.
      batch: lanes.
      ratio: what was measured over its floor, of medians.
      ratio_min: the smallest of a round.
      ratio_max: the largest of a round.
      floor_seconds: of the floor, for one time step.
      seconds: of what was measured, for one time step.
      target: the ratio that is to be reached, at most.
      met: whether it is reached.
      floor: what the floor is, in words.
      samples: every round's (seconds, floor seconds), or bytes.
      bytes: what was measured, where that is memory.
      floor_bytes: its floor, where that is memory.
      segment_length: K, time steps for each push of the influence.
      update_every: U, time steps for each update.
    """

    suite: str
    name: str
    n: int
    batch: int
    ratio: float
    ratio_min: float
    ratio_max: float
    floor_seconds: float | None
    seconds: float | None
    target: float | None
    met: bool | None
    floor: str
    samples: list[tuple[float, float]]
    bytes: float | None = None
    floor_bytes: float | None = None
    segment_length: int = 1
    update_every: int = 1


def alternate(work: Work, floor: Work, rounds: int) -> list[tuple[float, float]]:
    """Seconds for one time step of either, a pair for each round.

    Either goes first in every other round: what the one leaves in caches and clock rates meets both.
    """
    calls = _calls(work), _calls(floor)
    samples = []
    for i in range(rounds):
        if i % 2:
            floor_seconds = _per_step(floor, calls[1])
            samples.append((_per_step(work, calls[0]), floor_seconds))
        else:
            seconds = _per_step(work, calls[0])
            samples.append((seconds, _per_step(floor, calls[1])))
    return samples


def compare(
    work: Work,
    floor: Floor,
    *,
    suite: str,
    name: str,
    n: int,
    batch: int,
    target: float | None,
    rounds: int,
    segment_length: int = 1,
    update_every: int = 1,
) -> Measurement:
    """Times a program against its floor."""
    samples = alternate(work, floor.work, rounds)
    seconds, floor_seconds = (median(column) for column in zip(*samples))
    ratio, low, high = ratios(samples)
    met = None if target is None else ratio <= target
    return Measurement(
        suite=suite,
        name=name,
        n=n,
        batch=batch,
        ratio=ratio,
        ratio_min=low,
        ratio_max=high,
        floor_seconds=floor_seconds,
        seconds=seconds,
        target=target,
        met=met,
        floor=floor.words,
        samples=samples,
        segment_length=segment_length,
        update_every=update_every,
    )


def ratios(samples: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """The ratio of medians, and the smallest and the largest ratio of a round."""
    measured, floors = zip(*samples)
    each = [a / b for a, b in samples]
    return median(measured) / median(floors), min(each), max(each)


def fastest(candidates: Iterable[tuple[str, Callable[[], Work]]], tries: int = 4) -> Floor:
    """The one of several equivalent programs that takes the least time for a step.

    Args:
      candidates: (what it is, what makes the program); all are made, but no more than two are kept at
        a time.
      tries: runs of each, of which the shortest counts.
    """
    best = None
    for words, make in candidates:
        work = make()
        calls = _calls(work)
        seconds = min(_per_step(work, calls) for _ in range(tries))
        if best is None or seconds < best.seconds:
            best = Floor(words, work, seconds)
    assert best is not None
    return best


def median(values: Iterable[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _calls(work: Work) -> int:
    """How many calls make a run long enough; also the warm-up."""
    _timed(work.run, 1)
    return max(1, round(_LEAST_SECONDS / max(_timed(work.run, 1), 1e-6)))


def _per_step(work: Work, calls: int) -> float:
    return _timed(work.run, calls) / (calls * work.steps)


def _timed(run: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = run()
    jax.block_until_ready(result)
    return time.perf_counter() - start
