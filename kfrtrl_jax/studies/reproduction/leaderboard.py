"""The leaderboard of README.md: what each method comes to on all that has been run, in one row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfrtrl_jax._src import markdown
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies.reproduction import budget, report, runs, tables, times
from kfrtrl_jax.studies.reproduction.chapters import CHAPTERS

_STEP = 100_000
_ROWS = 10
_MARKS = ("<!-- leaderboard -->", "<!-- end of the leaderboard -->")


def render(results: Path) -> str:
    """The first rows in Markdown: methods by their mean place at the same wall time, then by T*.

    Args:
      results: the folder experiments/results.
    """
    found = report.load(results)
    copy = runs.of_record(found["copy"]) if "copy" in found else []
    places_by_time, places_by_steps = _places(found)
    compared = dict.fromkeys([*places_by_time, *places_by_steps])
    reached = {name: _values(copy, name) for name in runs.methods_of(copy)}
    alone = [name for name in reached if reached[name]]
    alone.sort(key=lambda name: -tables.spread(reached[name]).mean)
    rows = []
    for method in [*compared, *(name for name in alone if name not in compared)][:_ROWS]:
        own = [run for run in copy if run.method == method]
        rows.append(
            [
                method,
                _number(places_by_time.get(method), ".1f"),
                _number(places_by_steps.get(method), ".1f"),
                tables.spread(reached.get(method, [])).text(1),
                _number((own[0].ms_per_step or None) if own else None, ".2g"),
                _number(own[0].bytes_per_lane / 1024 if own else None, ",.0f"),
            ]
        )
    head = [
        "",
        "mean place on five tasks, same wall time",
        "same steps",
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


def _places(found: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """The mean places of `budget`, at the same time and at the same steps."""
    if "budget" not in found:
        return {}, {}
    own, scores = runs.of_record(found["budget"]), CHAPTERS["budget"].tasks
    by_time = budget.same_time(own, scores, times.of(found["budget"]))
    by_steps = budget.same_steps(own, scores)
    return budget.ranks(by_time, scores), budget.ranks(by_steps, scores)


def _values(copy: list[runs.Run], method: str) -> list[float]:
    """T* of each seed."""
    own = [run for run in copy if run.method == method]
    return tables.values_at(own, "sequence_length", _STEP)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
