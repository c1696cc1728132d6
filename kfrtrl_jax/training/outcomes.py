"""What the trials of a sweep have come to: a row and a curve per setting, over its seeds."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kfrtrl_jax._src.compositions import composed
from kfrtrl_jax._src.compositions.factories import KINDS
from kfrtrl_jax.training import choice, display, metrics, workdir
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training.choice import Results, figures, is_steady
from kfrtrl_jax.training.overrides import Overrides
from kfrtrl_jax.training.spreads import spread


def labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Overrides in words, the same for the same overrides and others for others.

    Those that would read alike, such as two rates that differ in their fourth digit or two fields of
    the same name, are given with all digits and whole paths.
    """
    keys = [workdir.as_text(own) for own in settings]
    # As text they are the same in any order of their fields.
    different = dict(zip(keys, settings, strict=True))
    short = {key: label_of(own) for key, own in different.items()}
    times = collections.Counter(short.values())
    whole = {
        key: ", ".join(f"{path}={value!r}" for path, value in own.items())
        for key, own in different.items()
    }
    return [short[key] if times[short[key]] == 1 else whole[key] for key in keys]


def label_of(overrides: Mapping[str, Any]) -> str:
    """Overrides in words, short: floats have three digits, fields the last part of their path."""
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
    # matplotlib takes a second to import, which a sweep should not begin with.
    from kfrtrl_jax.training import plots

    if outcomes:
        pictures.append(folder / "sweep.png")
        curves = {label: [logs[i] for i in members] for label, members in settings.items()}
        plots.plot_groups(curves, pictures[0], outcomes, words=words)
    pictures += _draw_responses(sweep, results, folder, words)
    display.say(f"pictures: {', '.join(map(str, pictures)) or 'none'}")


def by_setting(sweep: Sequence[Overrides]) -> dict[str, list[int]]:
    """The places of the trials that differ in their seed alone, by their other overrides in words."""
    settings: dict[str, list[int]] = {}
    for i, label in enumerate(labels([_without(own, "seed") for own in sweep])):
        settings.setdefault(label or "all", []).append(i)
    return settings


def _without(overrides: Overrides, *paths: str) -> Overrides:
    return {path: value for path, value in overrides.items() if path not in paths}


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
    named = (display.label_of(key, words) for key in outcomes)
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
            name = display.label_of(measure.key, display.common_words(everything))
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
    from kfrtrl_jax.training import plots

    pictures, outcome = [], choice.measure_of(results).key
    swept = _swept_floats(sweep)
    times = collections.Counter(path.split(".")[-1] for path in swept)
    for path in swept:
        lines: dict[str, dict[float, list[float]]] = {}
        others = labels([_without(own, "seed", path) for own in sweep])
        for overrides, result, label in zip(sweep, results, others, strict=True):
            if path in overrides and result.get(outcome) is not None and is_steady(result):
                points = lines.setdefault(label or "all", {})
                points.setdefault(overrides[path], []).append(result[outcome])
        if lines:
            last = path.split(".")[-1]
            pictures.append(folder / f"sweep_{last if times[last] == 1 else path}.png")
            label = display.label_of(outcome, words)
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
    found = spread(figures(results, key))
    return found.formatted(".4g", ".2g") if found.runs else "-"
