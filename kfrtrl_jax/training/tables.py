"""Results of sweeps as tables: some overrides in the rows, all others but the seed in the columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kfrtrl_jax._src import markdown
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training.choice import Results, figures
from kfrtrl_jax.training.outcomes import labels
from kfrtrl_jax.training.spreads import spread


def pivot(overrides: Sequence[Mapping[str, Any]], results: Results, rows: Sequence[str]) -> str:
    """Two tables in Markdown: final scores, mean and standard deviation over seeds, and times.

    Args:
      overrides: of each trial, by path.
      results: of each trial, as a sweep writes them.
      rows: the paths of the overrides whose values are the rows.

    Raises:
      ConfigError: if there are none, or if a trial does not have one of these.
    """
    if not rows:
        raise ConfigError("the rows need the path of an override at least, such as task")
    for own in overrides:
        missing = [path for path in rows if path not in own]
        if missing:
            raise ConfigError(
                f"the sweep has a trial without the override {missing[0]!r}: {dict(own)}"
            )
    left = labels([{path: own[path] for path in rows} for own in overrides])
    others = [
        {path: value for path, value in own.items() if path not in (*rows, "seed")}
        for own in overrides
    ]
    cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row, column, result in zip(left, labels(others), results, strict=True):
        cells.setdefault((row, column or "all"), []).append(result)
    names = list(dict.fromkeys(row for row, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))

    def table(heading: str, shown: Any) -> str:
        lines = []
        for name in names:
            own = {c: cells[name, c] for c in columns if (name, c) in cells}
            word = _judged_by(next(iter(own.values())))
            lines.append(
                [f"{name}: {word}", *(shown(own[c]) if c in own else "-" for c in columns)]
            )
        return markdown.table([heading, *columns], lines)

    scores = table("score of the last steps, mean ± standard deviation", _score)
    times = table("seconds of the longest run", _seconds)
    return f"{scores}\n{times}"


def _judged_by(results: Results) -> str:
    first = results[0]
    return str(first.get("score_name") or first.get("loss_unit") or "loss")


def _score(results: Results) -> str:
    values = figures(results, "score")
    failed = len(results) - len(values)
    text = spread(values).formatted(".3g", ".1g") if values else "-"
    return f"{text} ({failed} diverged)" if failed else text


def _seconds(results: Results) -> str:
    times = [r["wall_time"] for r in results if r.get("wall_time") is not None]
    return f"{max(times):.0f}" if times else "-"
