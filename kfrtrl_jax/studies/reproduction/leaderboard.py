"""The leaderboard of README.md: what each method comes to on all that has been run, in one row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kfrtrl_jax._src import markdown
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies.reproduction import budget, runs, tables, times
from kfrtrl_jax.studies.reproduction.chapters import CHAPTERS
from kfrtrl_jax.studies.reproduction.results import Results
from kfrtrl_jax.studies.reproduction.runs import Run
from kfrtrl_jax.training.spreads import Spread, spread

_STEP = 100_000
_ROWS = 11
# A place among fewer methods says little.
_FEW = 5
_MARKS = ("<!-- leaderboard -->", "<!-- end of the leaderboard -->")


def render(results: Results) -> str:
    """The first rows in Markdown: methods by their mean place at the same wall time, then by T*."""
    copy = runs.by_method(results.own.get("copy", ()))
    by_time, by_steps = _rankings(results)
    compared = dict.fromkeys([*by_time.places, *by_steps.places])
    reached = {name: _reached(own) for name, own in copy.items()}
    alone = [name for name in copy if reached[name].runs and name not in compared]
    alone.sort(key=lambda name: -reached[name].mean)
    rows = []
    for method in [*compared, *alone][:_ROWS]:
        own = copy.get(method, [])
        rows.append(
            [
                method,
                _number(by_time.places.get(method), ".1f"),
                _number(by_steps.places.get(method), ".1f"),
                reached[method].text(1) if own else "",
                _number((own[0].ms_per_step or None) if own else None, ".2g"),
                _number(own[0].bytes_per_lane / 1024 if own else None, ",.0f"),
            ]
        )
    head = [
        "",
        f"mean place on five tasks after {by_time.budget}",
        f"after {by_steps.budget}",
        f"copy task, n = 128: T\\* after {_STEP:,} steps",
        "ms a step",
        "KiB a lane",
    ]
    return markdown.table(head, rows)


def insert(text: str, table: str) -> str:
    """A page with the table between its marks.

    Args:
      text: of the page.
      table: in Markdown.

    Raises:
      ConfigError: if the page has no such marks.
    """
    begin, end = _MARKS
    parts = re.split(f"({re.escape(begin)}\n).*?({re.escape(end)})", text, flags=re.DOTALL)
    if len(parts) != 4:
        raise ConfigError(f"a page with a leaderboard has one {begin} and one {end} after it")
    before, first, last, after = parts
    return f"{before}{first}{table}{last}{after}"


class _Ranking(NamedTuple):
    """Mean places under one budget.

    Attributes:
      budget: in words.
      places: by method, the best first.
    """

    budget: str
    places: Mapping[str, float]


def _rankings(results: Results) -> tuple[_Ranking, _Ranking]:
    """The mean places of `budget` at the same time and at the same steps.

    They are those of the methods that were run at the full scale, or of all if those were but a few.
    """
    scores = CHAPTERS["budget"].tasks
    everything = results.own.get("budget", ())
    whole = budget.at_full_scale(everything)
    own = whole if len(runs.methods_of(whole)) >= _FEW else everything
    timed = times.of(results.records["budget"]) if everything else {}
    return (
        _ranking(budget.same_time(own, scores, timed), "the same time"),
        _ranking(budget.same_steps(own, scores), "the same steps"),
    )


def _ranking(comparison: budget.Comparison, otherwise: str) -> _Ranking:
    """The places of a comparison, whose budget is that of all tasks or, in words, otherwise."""
    budgets = set(comparison.limits.values())
    words = budgets.pop() if len(budgets) == 1 else otherwise
    return _Ranking(words, budget.ranks(comparison, CHAPTERS["budget"].tasks))


def _reached(own: Sequence[Run]) -> Spread:
    """T* of the seeds of a method."""
    return spread(tables.values_at(own, "sequence_length", _STEP))


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
