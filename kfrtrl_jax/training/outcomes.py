"""What the trials of a sweep have come to: a row and a curve per setting, over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kfrtrl_jax.training import composed, display, metrics, plots
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training.factories import KINDS

Overrides = dict[str, Any]
Results = Sequence[Mapping[str, Any]]


def label_of(overrides: Mapping[str, Any]) -> str:
    """Overrides in words."""
    return ", ".join(
        _shown(value, key)
        if key in configs.SECTIONS or key.endswith(".name")
        else f"{_short(key)} {_shown(value, key)}"
        for key, value in overrides.items()
    )


def figures(results: Results, key: str) -> list[float]:
    """A figure of those trials that did not diverge."""
    return [r[key] for r in results if r.get(key) is not None and is_finished(r)]


def is_finished(result: Mapping[str, Any]) -> bool:
    """Whether a trial came to its last step with finite numbers."""
    return "diverged_at" not in result


def report(
    sweep: Sequence[Overrides],
    results: Results,
    logs: Sequence[Sequence[metrics.Record]],
    folder: Path,
) -> None:
    """Prints the table and draws the pictures.

    Args:
      sweep: the overrides of each trial.
      results: of each trial.
      logs: of each trial.
      folder: receives the pictures.
    """
    settings: dict[str, list[int]] = {}
    for i, overrides in enumerate(sweep):
        label = label_of({k: v for k, v in overrides.items() if k != "seed"}) or "all"
        settings.setdefault(label, []).append(i)
    outcomes = _outcomes(results)
    outcome = outcomes[0] if outcomes else ""
    keys = list(dict.fromkeys(key for overrides in sweep for key in overrides if key != "seed"))
    rows = []
    for members in settings.values():
        own = [results[i] for i in members]
        failed = sum("diverged_at" in result for result in own)
        chosen = [_shown(sweep[members[0]].get(key, ""), key) for key in keys]
        spreads = [_spread(own, key) for key in outcomes]
        rows.append([*chosen, str(len(own)), *spreads, str(failed or "")])
    words = display.common_words(results)
    named = (plots.label_of(key, words) for key in outcomes)
    columns = [*(_short(key).replace("_", " ") for key in keys), "runs", *named, "diverged"]
    display.print_columns("mean ± standard deviation over seeds", columns, rows)

    curves = {label: [logs[i] for i in members] for label, members in settings.items()}
    pictures = []
    if outcomes:
        pictures.append(folder / "sweep.png")
        plots.plot_groups(curves, pictures[0], outcomes, words=words)
    for path in _swept_floats(sweep):
        lines: dict[str, dict[float, list[float]]] = {}
        for overrides, result in zip(sweep, results):
            if path in overrides and result.get(outcome) is not None and is_finished(result):
                rest = {k: v for k, v in overrides.items() if k not in ("seed", path)}
                points = lines.setdefault(label_of(rest) or "all", {})
                points.setdefault(overrides[path], []).append(result[outcome])
        if lines:
            pictures.append(folder / f"sweep_{path.split('.')[-1]}.png")
            label = plots.label_of(outcome, words)
            plots.plot_response(lines, pictures[-1], path, f"final {label}")
    display.say(f"pictures: {', '.join(map(str, pictures)) or 'none'}")


def _short(path: str) -> str:
    *parents, last = path.removesuffix(".name").split(".")
    return f"{parents[-1]}.{last}" if last.isdigit() and parents else last


def _shown(value: Any, path: str) -> str:
    if isinstance(value, Mapping):
        return composed.shown(KINDS[path.split(".")[0]], value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _outcomes(results: Results) -> list[str]:
    """The figures to report; scores only where they are not the losses."""
    found = [key for key in metrics.OUTCOMES if any(r.get(key) is not None for r in results)]
    scored = any("score_name" in result for result in results)
    return [key for key in found if scored or not key.endswith("score")]


def _swept_floats(sweep: Sequence[Overrides]) -> list[str]:
    values: dict[str, set[float]] = {}
    for overrides in sweep:
        for path, value in overrides.items():
            if isinstance(value, float):
                values.setdefault(path, set()).add(value)
    return [path for path, seen in values.items() if len(seen) > 1]


def _spread(results: Results, key: str) -> str:
    values = figures(results, key)
    if not values:
        return "-"
    return f"{np.mean(values):.4g} ± {np.std(values):.2g}"
