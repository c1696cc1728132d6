"""Tables of runs in Markdown: figures at given steps over seeds, paired differences, costs.

Every figure is computed from the records, and says how many seeds it is of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import scipy.stats

from kfrtrl_jax._src import markdown
from kfrtrl_jax.studies.reproduction.runs import Run, by_method, status_of, without_lanes
from kfrtrl_jax.training.spreads import Spread, spread

_CONFIDENCE = 0.95
# The heading of `steps_of`.
STEPS_OF = "steps run, of the full scale's"


class Difference(NamedTuple):
    """What one method is above another, paired over seeds.

    Attributes:
      mean: over the seeds that both have.
      margin: half the width of the 95 % confidence interval by Student's t; NaN for one seed.
      seeds: their number.
    """

    mean: float
    margin: float
    seeds: int

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.seeds > 1 and abs(self.mean) > self.margin

    def text(self, digits: int) -> str:
        """In words, such as -0.12 ± 0.03 (3), or that the seeds cannot tell."""
        if not self.seeds:
            return ""
        if self.seeds == 1:
            return f"{self.mean:+.{digits}f} (1, no interval)"
        verdict = "" if self.beyond_noise else ", within noise"
        return f"{self.mean:+.{digits}f} ± {self.margin:.{digits}f} ({self.seeds}{verdict})"


def paired(runs: Sequence[Run], method: str, other: str, field: str, step: int) -> Difference:
    """How much a figure of a method at a step is above that of another method.

    Args:
      runs: of both, at least; pairs are those of the same task and seed.
      method, other: their names.
      field: of the figure.
      step: at which it is compared.
    """
    values, those_of_other = (
        {
            (run.task, run.seed): run.series[field][step]
            for run in runs
            if run.method == name and step in run.series.get(field, {})
        }
        for name in (method, other)
    )
    common = sorted(values.keys() & those_of_other.keys())
    return difference([values[key] - those_of_other[key] for key in common])


def difference(differences: Sequence[float]) -> Difference:
    """The mean of differences, one per seed, and its margin."""
    found = spread(differences)
    if found.runs < 2:
        return Difference(found.mean, math.nan, found.runs)
    quantile = scipy.stats.t.ppf((1 + _CONFIDENCE) / 2, found.runs - 1)
    margin = float(quantile) * found.deviation / math.sqrt(found.runs)
    return Difference(found.mean, margin, found.runs)


def at_steps(runs: Sequence[Run], field: str, steps: Sequence[int], digits: int) -> str:
    """A row per method: the figure at each step, mean ± standard deviation (number of seeds).

    Steps that no run has are left out, and so are methods without any figure. Seeds that diverged
    before a step are told.
    """
    known = [s for s in steps if any(s in run.series.get(field, {}) for run in runs)]
    rows = []
    for method, own in by_method(runs).items():
        cells = [_cell(own, field, step, digits) for step in known]
        if any(cells):
            rows.append([method, *cells])
    return markdown.table(["", *(f"{step:,} steps" for step in known)], rows)


def _cell(runs: Sequence[Run], field: str, step: int, digits: int) -> str:
    failed = sum(run.status == "diverged" and run.steps < step for run in runs)
    told = f"{failed} diverged" if failed else ""
    figure = spread(values_at(runs, field, step)).text(digits)
    return ", ".join(filter(None, [figure, told]))


def values_at(runs: Sequence[Run], field: str, step: int) -> list[float]:
    """A figure at a step, of those runs that have it."""
    series = [run.series.get(field, {}) for run in runs]
    return [values[step] for values in series if step in values]


def last_common_step(runs: Sequence[Run], field: str) -> int:
    """The last step at which all runs but those that diverged have a figure; 0 if there is none."""
    kept = [set(run.series.get(field, {})) for run in runs if run.status != "diverged"]
    return max(set.intersection(*kept), default=0) if kept else 0


def differences(runs: Sequence[Run], other: str, field: str, step: int, digits: int) -> str:
    """A row per method: what it is above another method at a step, paired over seeds; "" for none."""
    rows = []
    for method in by_method(runs):
        found = paired(runs, method, other, field, step)
        if method != other and found.seeds:
            rows.append([method, found.text(digits)])
    return markdown.table(["", f"above {other}"], rows) if rows else ""


def by_task(runs: Sequence[Run], field: str, digits: int, other: str = "") -> str:
    """A row per method and a column per task: the last figure, mean ± standard deviation (seeds).

    The last columns are how long the runs were and what a step takes.

    Args:
      runs: those that are done; of others there is no last figure.
      field: of the figure.
      digits: behind the point.
      other: a method to compare with. Where the paired difference is beyond noise, a figure is marked
        by ↑ if it is above that method's, and by ↓ if it is below.
    """
    done = finished(runs)
    names = list(dict.fromkeys(run.task for run in done))
    rows = []
    for method, own in by_method(done).items():
        cells = []
        for task in names:
            here = [run for run in own if run.task == task]
            text = last(here, field).text(digits)
            mark = _mark(done, method, other, task, field)
            cells.append(f"{text}{mark}{diverged(here)}")
        time = time_of(own)
        rows.append([method, *cells, steps_of(own), f"{time.mean:.2g}" if time.runs else ""])
    return markdown.table(["", *map(without_lanes, names), STEPS_OF, "ms a step"], rows)


def steps_of(runs: Sequence[Run]) -> str:
    """How many time steps the runs of a method are planned for, and how many at the full scale."""
    planned, full = min(run.planned_steps for run in runs), runs[0].full
    return f"{planned:,}" if full is None else f"{planned:,} of {full.steps:,}"


def finished(runs: Sequence[Run]) -> list[Run]:
    """The runs that will not go on: those at their last step, and those that diverged."""
    return [run for run in runs if run.status in ("done", "diverged")]


def diverged(runs: Sequence[Run]) -> str:
    """How many of them did, in words after a figure: " 1 diverged", or nothing."""
    gone = sum(run.status == "diverged" for run in runs)
    return f" {gone} diverged" if gone else ""


def last(runs: Sequence[Run], field: str) -> Spread:
    """A figure at the last step of the runs that came to it."""
    series = [(run.series.get(field, {}), run.steps) for run in runs if run.status == "done"]
    return spread([values[step] for values, step in series if step in values])


def _mark(runs: Sequence[Run], method: str, other: str, task: str, field: str) -> str:
    here = [run for run in runs if run.task == task and run.status == "done"]
    steps = {run.steps for run in here if run.method in (method, other)}
    if not other or method == other or len(steps) != 1:
        return ""
    found = paired(here, method, other, field, steps.pop())
    return "" if not found.beyond_noise else " ↑" if found.mean > 0 else " ↓"


def time_of(runs: Sequence[Run]) -> Spread:
    """Milliseconds that a time step takes, of those runs whose time is known."""
    return spread([run.ms_per_step for run in runs if run.ms_per_step])


def results(runs: Sequence[Run]) -> str:
    """A row per method: the lowest validation loss and the test loss there; "" if no run has any."""
    rows = []
    for method, own in by_method(runs).items():
        cells = [
            spread([run.results[key] for run in own if key in run.results]).text(3)
            for key in ("best_valid_loss", "test_loss")
        ]
        if any(cells):
            rows.append([method, *cells])
    return markdown.table(["", "validation", "test"], rows) if rows else ""


def costs(runs: Sequence[Run]) -> str:
    """A row per method: how far its runs have come, what a step takes, what a lane keeps."""
    rows = []
    for method, own in by_method(runs).items():
        time = time_of(own)
        rows.append(
            [
                method,
                str(len(own)),
                f"{min(run.steps for run in own):,}",
                status_of(own),
                f"{time.mean:.3g}" if time.runs else "",
                f"{own[0].bytes_per_lane / 1024:,.0f}",
                f"`{own[0].command}`",
            ]
        )
    head = ["", "seeds", "steps", "status", "ms a step", "KiB a lane", "command of the first seed"]
    return markdown.table(head, rows)
