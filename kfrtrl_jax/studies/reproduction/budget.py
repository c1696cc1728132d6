"""What methods come to at the same wall time and at the same number of time steps.

Each method is read at the learning rate that is best for it there, by the mean over its seeds.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from operator import eq, lt
from typing import NamedTuple

from kfrtrl_jax._src import markdown
from kfrtrl_jax.studies.reproduction import tables
from kfrtrl_jax.studies.reproduction.chapters import Figure, base
from kfrtrl_jax.studies.reproduction.runs import Run, by_method, methods_of
from kfrtrl_jax.training.spreads import spread

RATE = "optimizer.learning_rate"


class Reading(NamedTuple):
    """A method on a task at its best learning rate.

    Attributes:
      method: by its name.
      step: at which it is read.
      rate: the learning rate.
      values: the score of each seed.
    """

    method: str
    step: int
    rate: float
    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.values.values()) / len(self.values)

    def text(self) -> str:
        """In words, such as 0.036 ± 0.01 (3) at 10^-2.5."""
        found = spread(list(self.values.values()))
        rate = f"10^{math.log10(self.rate):.2g}"
        return f"{found.formatted('.3g', '.2g')} ({found.runs}) at {rate}"


class Comparison(NamedTuple):
    """All methods on all tasks under one budget.

    Attributes:
      limits: the budget of each task, by its name in configs, in words.
      steps: how many each method was run for, and how many at the full scale, in words.
      readings: of each task, one per method that can be read there.
      diverged: of each task, the methods of which a seed diverged at every rate within the budget.
    """

    limits: Mapping[str, str]
    steps: Mapping[str, str]
    readings: Mapping[str, Sequence[Reading]]
    diverged: Mapping[str, Sequence[str]]


def same_steps(runs: Sequence[Run], scores: Mapping[str, Figure]) -> Comparison:
    """All methods after as many time steps as the shortest runs of a task have.

    Args:
      runs: of all methods, tasks, rates and seeds.
      scores: of the tasks, by name without arguments.
    """
    prices = dict.fromkeys(methods_of(runs), 1.0)
    return _compare(runs, scores, prices, lambda steps: f"{steps:,.0f} steps")


def same_time(
    runs: Sequence[Run], scores: Mapping[str, Figure], times: Mapping[str, float]
) -> Comparison:
    """All methods after the time that the runs of the method with the least of it have.

    Args:
      runs: of all methods, tasks, rates and seeds; methods without a time are left out.
      scores: of the tasks, by name without arguments.
      times: milliseconds per time step, by method.
    """
    known = [run for run in runs if run.method in times]
    return _compare(known, scores, times, lambda spent: f"{spent / 1000:.1f} s")


def at_full_scale(runs: Sequence[Run]) -> list[Run]:
    """The runs of those methods of which all are planned for the steps of the full scale."""
    return [
        run
        for own in by_method(runs).values()
        if own[0].full is not None and min(r.planned_steps for r in own) >= own[0].full.steps
        for run in own
    ]


def _compare(
    runs: Sequence[Run],
    scores: Mapping[str, Figure],
    prices: Mapping[str, float],
    words: Callable[[float], str],
) -> Comparison:
    """All methods at the largest budget that the runs of all have, at a price per time step each.

    Runs that have not ended are left out, so that a method that has just begun does not make the budget
    small.
    """
    runs = [run for run in runs if run.status in ("done", "diverged")]
    limits, readings, diverged = {}, {}, {}
    for task in dict.fromkeys(run.task for run in runs):
        score, here = scores[base(task)], [run for run in runs if run.task == task]
        own = by_method(here)
        ends = {method: tables.last_common_step(its, score.field) for method, its in own.items()}
        # A method of which all runs diverged has no end, and no reading.
        limit = min((prices[method] * end for method, end in ends.items() if end), default=0.0)
        until = {method: limit / prices[method] if limit else math.inf for method in own}
        found = [_reading(m, its, score, until[m]) for m, its in own.items()]
        limits[task] = words(limit)
        readings[task] = [reading for reading in found if reading is not None]
        diverged[task] = [method for method, its in own.items() if not _steady(its, until[method])]
    steps = {method: tables.steps_of(own) for method, own in by_method(runs).items()}
    return Comparison(limits, steps, readings, diverged)


def _steady(runs: Sequence[Run], until: float) -> dict[float, list[Run]]:
    """The runs by their rate, without the rates at which a seed diverged before a step."""
    rates: dict[float, list[Run]] = {}
    for run in runs:
        rates.setdefault(run.overrides[RATE], []).append(run)
    return {
        rate: own
        for rate, own in rates.items()
        if not any(run.status == "diverged" and run.steps < until for run in own)
    }


def _reading(method: str, runs: Sequence[Run], score: Figure, until: float) -> Reading | None:
    """A method at its best rate, among those at which no seed has diverged until then."""
    found = []
    for rate, own in _steady(runs, until).items():
        common = set.intersection(*(set(run.series.get(score.field, {})) for run in own))
        step = max((s for s in common if s <= until * (1 + 1e-9)), default=0)
        if not step:
            continue
        values = {run.seed: run.series[score.field][step] for run in own}
        reading = Reading(method, step, rate, values)
        loss = spread(tables.values_at(own, "running_loss", step)).mean
        # A score of whole numbers, such as T*, often ties.
        found.append((reading.mean if score.rises else -reading.mean, -loss, reading))
    return max(found, key=lambda each: each[:2])[2] if found else None


def at_best_rates(runs: Sequence[Run], scores: Mapping[str, Figure]) -> list[Run]:
    """Of each method and task the runs at the rate that is best at their last common step."""
    kept = []
    for task, method in dict.fromkeys((run.task, run.method) for run in runs):
        own = [run for run in runs if run.task == task and run.method == method]
        reading = _reading(method, own, scores[base(task)], math.inf)
        kept += [run for run in own if reading and run.overrides[RATE] == reading.rate]
    return kept


def ranks(comparison: Comparison, scores: Mapping[str, Figure]) -> dict[str, float]:
    """The mean over tasks of each method's place, 1 for the best.

    Among the methods that were read on all tasks: one that was read on some, or will be read on the
    others later, moves none of them.
    """
    read_on = collections.Counter(r.method for own in comparison.readings.values() for r in own)
    places: dict[str, list[float]] = {
        name: [] for name, tasks in read_on.items() if tasks == len(comparison.limits)
    }
    for task, readings in comparison.readings.items():
        sign = -1 if scores[base(task)].rises else 1
        means = {r.method: sign * r.mean for r in readings if r.method in places}
        for name, own in means.items():
            better, equal = (sum(test(x, own) for x in means.values()) for test in (lt, eq))
            places[name].append(better + (equal + 1) / 2)
    mean_places = {name: sum(own) / len(own) for name, own in places.items()}
    return dict(sorted(mean_places.items(), key=lambda item: item[1]))


def table(comparison: Comparison, scores: Mapping[str, Figure], times: Mapping[str, float]) -> str:
    """A row per method, by mean place. A task's best is bold, and all within noise of it.

    Args:
      comparison: of all methods.
      scores: of the tasks, by name without arguments.
      times: milliseconds per time step, by method.
    """
    mean_places = ranks(comparison, scores)
    read = [r.method for readings in comparison.readings.values() for r in readings]
    lost = [method for names in comparison.diverged.values() for method in names]
    bold = {
        task: _best(comparison.readings[task], scores[base(task)]) for task in comparison.limits
    }
    rows = []
    for method in dict.fromkeys([*mean_places, *read, *lost]):
        cells = [method, f"{times[method]:.2g}" if method in times else ""]
        cells.append(f"{mean_places[method]:.1f}" if method in mean_places else "")
        cells.append(comparison.steps[method])
        for task in comparison.limits:
            found = [r for r in comparison.readings[task] if r.method == method]
            text = found[0].text() if found else ""
            if method in comparison.diverged[task]:
                text = "diverged at every rate"
            cells.append(f"**{text}**" if method in bold[task] else text)
        rows.append(cells)
    heads = [
        f"`{task}`: {scores[base(task)].words}, after {limit}"
        for task, limit in comparison.limits.items()
    ]
    return markdown.table(["", "ms a step", "mean place", tables.STEPS_OF, *heads], rows)


def _best(readings: Sequence[Reading], score: Figure) -> set[str]:
    """The best method and those that are not beyond noise behind it, paired over seeds."""
    if not readings:
        return set()
    best = (max if score.rises else min)(readings, key=lambda reading: reading.mean)
    names = {best.method}
    for reading in readings:
        common = best.values.keys() & reading.values.keys()
        gaps = [reading.values[seed] - best.values[seed] for seed in sorted(common)]
        difference = tables.difference(gaps)
        if not difference.beyond_noise:
            names.add(reading.method)
    return names
