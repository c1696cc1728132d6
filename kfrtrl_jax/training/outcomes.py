"""What the trials of a sweep have come to: a row and a curve per setting, over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kfrtrl_jax._src.compositions import composed
from kfrtrl_jax._src.compositions.factories import KINDS
from kfrtrl_jax.training import choice, display, metrics, plots
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training.choice import Results, figures, is_finished
from kfrtrl_jax.training.overrides import Overrides


def label_of(overrides: Mapping[str, Any]) -> str:
    """Overrides in words."""
    return ", ".join(
        _shown(value, key)
        if key in configs.SECTIONS or key.endswith(".name")
        else f"{_short(key)} {_shown(value, key)}"
        for key, value in overrides.items()
    )


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
    settings = by_setting(sweep)
    words, outcomes = display.common_words(results), _outcomes(results)
    _print_table(sweep, results, settings, outcomes, words)
    pictures = []
    if outcomes:
        pictures.append(folder / "sweep.png")
        curves = {label: [logs[i] for i in members] for label, members in settings.items()}
        plots.plot_groups(curves, pictures[0], outcomes, words=words)
    pictures += _draw_responses(sweep, results, folder, words)
    display.say(f"pictures: {', '.join(map(str, pictures)) or 'none'}")


def by_setting(sweep: Sequence[Overrides]) -> dict[str, list[int]]:
    """The places of the trials that differ in their seed alone, by their other overrides in words."""
    settings: dict[str, list[int]] = {}
    for i, overrides in enumerate(sweep):
        label = label_of({k: v for k, v in overrides.items() if k != "seed"}) or "all"
        settings.setdefault(label, []).append(i)
    return settings


def _print_table(
    sweep: Sequence[Overrides],
    results: Results,
    settings: Mapping[str, Sequence[int]],
    outcomes: Sequence[str],
    words: display.Words,
) -> None:
    """Prints a row for each setting, with a star at the best one of each task."""
    lines, stars = _choices(sweep, results, settings)
    keys = list(dict.fromkeys(key for overrides in sweep for key in overrides if key != "seed"))
    rows = []
    for label, members in settings.items():
        own = [results[i] for i in members]
        failed = sum("diverged_at" in result for result in own)
        chosen = [_shown(sweep[members[0]].get(key, ""), key) for key in keys]
        spreads = [_spread(own, key) for key in outcomes]
        if label in stars:
            chosen[0] = f"* {chosen[0]}"
        rows.append([*chosen, str(len(own)), *spreads, str(failed or "")])
    named = (plots.label_of(key, words) for key in outcomes)
    columns = [*(_short(key).replace("_", " ") for key in keys), "runs", *named, "diverged"]
    display.print_columns("mean ± standard deviation over seeds", columns, rows)
    for line in lines:
        display.say(f"* {line}")


def _choices(
    sweep: Sequence[Overrides], results: Results, settings: Mapping[str, Sequence[int]]
) -> tuple[list[str], set[str]]:
    """The best settings in words, and their labels; one for each task, as tasks have no common unit."""
    tasks: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for label, members in settings.items():
        task = _task_of(sweep[members[0]])
        tasks.setdefault(task, {})[label] = [results[i] for i in members]
    lines, stars = [], set()
    for own in tasks.values():
        everything = [result for group in own.values() for result in group]
        measure = choice.measure_of(everything)
        if len(own) > 1 and (found := choice.choose(own, measure)):
            name = plots.label_of(measure.key, display.common_words(everything))
            lines.append(choice.in_words(found, name))
            stars.add(found.setting)
    return lines, stars


def _task_of(overrides: Overrides) -> str:
    """The task that a trial names; "" if that is the config's."""
    return str([overrides.get(path) for path in ("task", "task.name")])


def _draw_responses(
    sweep: Sequence[Overrides], results: Results, folder: Path, words: display.Words
) -> list[Path]:
    """Draws the figure that counts against each float that is swept; the pictures."""
    pictures, outcome = [], choice.measure_of(results).key
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
            shown = label if outcome == "best_valid_loss" else f"final {label}"
            plots.plot_response(lines, pictures[-1], path, shown)
    return pictures


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
