"""Timing of two programs in alternation, and the resulting measurement.

Absolute times say little on a shared machine. Runs of the measured program alternate with runs of its
floor in one process. The result is the ratio of their medians, with the smallest and largest ratio of a
round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

# A run is repeated until it takes at least this long, as clocks and schedulers are coarse.
_LEAST_SECONDS = 0.1


class Work(NamedTuple):
    """A program that can be run repeatedly.

    Attributes:
      run: the function to call; it returns arrays to wait for.
      steps: time steps that one call makes.
    """

    run: Callable[[], Any]
    steps: int


def resumed(advance: Callable[[Any], tuple[Any, Any]], start: Any, steps: int) -> Work:
    """A program that goes on from its last state each time it is run.

    Args:
      advance: state -> (state, arrays to wait for); it may take over the state's memory.
      start: the first state.
      steps: time steps that one call makes.
    """
    state = [start]

    def run() -> Any:
        state[0], metrics = advance(state[0])
        return metrics

    return Work(run, steps)


def called(factory: str, arguments: Mapping[str, Any]) -> str:
    """The call of a factory as text: ok(rank=16); its name alone without arguments."""
    written = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return f"{factory}({written})" if written else factory


class Floor(NamedTuple):
    """The reference that a measurement is compared with.

    Attributes:
      words: its description.
      work: its program.
      seconds: for one time step, if known before the rounds.
    """

    words: str
    work: Work
    seconds: float = float("nan")


class Measurement(NamedTuple):
    """One measurement, a row of the table. Quantities that a suite does not measure are None.

    Attributes:
      suite: the suite's name.
      name: of the measured program.
      n: the cell's hidden size.
      batch: lanes.
      ratio: the median of the measured program over the median of its floor.
      ratio_min: the smallest ratio of a round.
      ratio_max: the largest ratio of a round.
      floor_seconds: of the floor, per time step.
      seconds: of the measured program, per time step.
      target: the largest ratio that counts as reached.
      met: whether the target is reached.
      floor: the description of the floor.
      samples: every round's (seconds, floor seconds), or bytes.
      bytes: the measured memory, if memory was measured.
      floor_bytes: the floor's memory, if memory was measured.
      segment_length: K, time steps per push of the influence.
      update_every: U, time steps per update.
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
    """Seconds per time step of both programs, one pair per round.

    They take turns in going first, so that the state of caches and clock rates affects both alike.
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
    """The ratio of medians, and the smallest and largest ratio of a round."""
    measured, floors = zip(*samples)
    each = [a / b for a, b in samples]
    return median(measured) / median(floors), min(each), max(each)


def alone(work: Work, rounds: int) -> float:
    """The median seconds per time step of a program."""
    calls = _calls(work)
    return median(_per_step(work, calls) for _ in range(rounds))


def fastest(candidates: Iterable[tuple[str, Callable[[], Work]]], tries: int = 4) -> Floor:
    """The fastest of several equivalent programs, per step.

    Args:
      candidates: pairs of a description and a function that makes the program; all are made, but at
        most two are kept at a time.
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
    """The median of the values."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _calls(work: Work) -> int:
    """The number of calls that make a run long enough; also warms up."""
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
