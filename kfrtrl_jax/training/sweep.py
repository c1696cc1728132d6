"""Many runs of one config file; trials that differ only in seed and floats are one vmapped program."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import (
    checkpoints,
    composed,
    display,
    made_with,
    memory,
    metrics,
    plots,
    trials,
    workdir,
)
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training.factories import KINDS
from kfrtrl_jax.training.group import Group, alike, make_group
from kfrtrl_jax.training.loop import Member, Place, Training, summarize
from kfrtrl_jax.training.program import Experiment, build

Overrides = dict[str, Any]


def grid(**values: Iterable[Any]) -> list[Overrides]:
    """Every combination of the values of fields: grid(**{"optimizer.learning_rate": [1e-3, 1e-4]})."""
    return [dict(zip(values, point)) for point in itertools.product(*values.values())]


def seeds(count: int) -> list[Overrides]:
    """The seeds 0 to count - 1."""
    return [{"seed": seed} for seed in range(count)]


def product(*sweeps: Sequence[Overrides]) -> list[Overrides]:
    """Every combination of overrides, one from each list; later ones win."""
    return [
        {key: value for part in parts for key, value in part.items()}
        for parts in itertools.product(*sweeps)
    ]


def run_sweep(
    config: Any,
    sweep: Sequence[Overrides],
    folder: Path,
    common: Overrides | None = None,
) -> list[dict[str, Any]]:
    """Runs all trials that have no result yet, each from its last checkpoint.

    A sweep may be run again with more trials, or with more steps for trials that it has: what is there
    is kept. A trial is known by its config, wherever it stands in the list.

    Args:
      config: the config that the trials override, as for `config.resolve`.
      sweep: the overrides of each trial, by path; a path may also be that of a whole section, its value
        text or a dict: {"estimator": "ok(rank=8)"}.
      folder: receives config.json (of all trials), sweep.json and results.csv with the results,
        pictures, a folder per trial, trials/NUMBER, with its config.json, metrics.jsonl, summary.json
        and parameters, and one per group of trials that ran side by side, groups/NUMBER, with its
        checkpoints.
      common: overrides of all trials, which those of a trial replace.

    Returns:
      The result of each trial, as in its summary.json: its last record, the best validation loss and
      the test loss if there is held-out data, and diverged_at and problem if it diverged.

    Raises:
      ConfigError, DataError, WorkdirError, UnsupportedCellError: before anything is computed.
      SaveError: if a state cannot be saved.
      Interrupted: on a signal; the group that was running is saved.
    """
    if not isinstance(sweep, list) or not all(isinstance(trial, dict) for trial in sweep):
        raise ConfigError(
            f"get_sweep() must return a list of dicts of overrides, got {sweep!r:.60}"
        )
    if not sweep:
        raise ConfigError("the sweep has no trials: get_sweep() returned an empty list")
    configured = [_trial(config, common or {}, own, i) for i, own in enumerate(sweep)]
    experiments: dict[str, Experiment] = {}
    for trial in configured:
        if (kind := alike(trial)) not in experiments:
            experiments[kind] = _built(trial)
    with workdir.hold(folder):
        names, notes = trials.claim(folder, configured)
        runs, overrides = (dict(zip(names, values)) for values in (configured, sweep))
        data = {configs.shown(t, "task"): experiments[alike(t)].about.data for t in configured}
        notes += made_with.bind(folder, data)
        results = trials.read_results(folder, notes.append)
        works = trials.plan(
            folder, runs, results, lambda kind: _most(experiments[kind]), notes.append
        )
        for note in notes:
            display.say(f"note: {note}")
        for number, work in enumerate(works, 1):
            title = f"group {number} of {len(works)}, trials {work.names[0]} to {work.names[-1]}"
            display.say(f"{title}: {_describe([overrides[name] for name in work.names])}")
            trials.begin(work, folder / "trials", runs)
            members = [runs[name] for name in work.names]
            group = make_group(members, experiments[alike(members[0])])
            found = _run_group(group, work, members[0], folder)
            results.update(zip(work.names, found))
            trials.write_results(folder, overrides, results)
        trials.write_results(folder, overrides, results)
        ordered = [results[name] for name in names]
        logs = [_log(folder / "trials" / name, runs[name], results[name]) for name in names]
        _report(sweep, ordered, logs, folder)
    return ordered


def _built(config: Any) -> Experiment:
    experiment = build(config)
    memory.check(experiment, config)
    return experiment


def _most(experiment: Experiment) -> int:
    """How many runs of an experiment fit in memory side by side."""
    return max(1, memory.available() // memory.needed(experiment)[0])


def _run_group(group: Group, work: trials.Work, config: Any, folder: Path) -> list[dict[str, Any]]:
    """Runs the trials of a group side by side; returns their results."""
    show = display.make_display(config.num_steps, 0, group.about.words)
    members = [Member(folder / "trials" / name) for name in work.names]
    with (
        contextlib.closing(checkpoints.Checkpoints(work.folder)) as saved,
        contextlib.closing(show),
    ):
        place = Place(saved, folder, show, tensorboard=False)
        training = Training(group, members, config, place)
        training.run()
        return summarize(training)


def _trial(config: Any, common: Overrides, own: Overrides, number: int) -> Any:
    kept = {
        path: value
        for path, value in common.items()
        if not any(path.startswith(f"{replaced}.") for replaced in own)
    }
    try:
        return configs.resolve(config, {**kept, **own})
    except ConfigError as error:
        raise ConfigError(f"trial {number} of the sweep: {error}") from error


def _outcomes(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures to report; scores only where they are not the losses."""
    found = [key for key in metrics.OUTCOMES if any(r.get(key) is not None for r in results)]
    scored = any("score_name" in result for result in results)
    return [key for key in found if scored or not key.endswith("score")]


def _describe(overrides: Sequence[Overrides]) -> str:
    """The overrides that the trials of a group have in common."""
    shared = {
        key: value
        for key, value in overrides[0].items()
        if all(key in own and own[key] == value for own in overrides)
    }
    return label_of(shared) or f"{len(overrides)} trials"


def label_of(overrides: Mapping[str, Any]) -> str:
    """Overrides in words."""
    return ", ".join(
        _shown(value, key)
        if key in configs.SECTIONS or key.endswith(".name")
        else f"{_short(key)} {_shown(value, key)}"
        for key, value in overrides.items()
    )


def _short(path: str) -> str:
    *parents, last = path.removesuffix(".name").split(".")
    return f"{parents[-1]}.{last}" if last.isdigit() and parents else last


def _shown(value: Any, path: str) -> str:
    if isinstance(value, Mapping):
        return composed.shown(KINDS[path.split(".")[0]], value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _log(folder: Path, config: Any, result: Mapping[str, Any]) -> list[metrics.Record]:
    """The log of a trial; says so if it has lost lines."""
    records = metrics.read(folder / metrics.METRICS)
    if lost := metrics.missing(folder, records, result.get("step", 0), config.log_every):
        display.say(f"warning: {lost}")
    return records


def _report(
    sweep: Sequence[Overrides],
    results: Sequence[Mapping[str, Any]],
    logs: Sequence[Sequence[metrics.Record]],
    folder: Path,
) -> None:
    """Prints the table and draws the pictures: one row and one curve per setting, over its seeds."""
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
    display.say(f"results: {folder / trials.RESULTS}; pictures: {', '.join(map(str, pictures))}")


def _swept_floats(sweep: Sequence[Overrides]) -> list[str]:
    values: dict[str, set[float]] = {}
    for overrides in sweep:
        for path, value in overrides.items():
            if isinstance(value, float):
                values.setdefault(path, set()).add(value)
    return [path for path, seen in values.items() if len(seen) > 1]


def figures(results: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """A figure of those trials that did not diverge."""
    return [r[key] for r in results if r.get(key) is not None and is_finished(r)]


def is_finished(result: Mapping[str, Any]) -> bool:
    """Whether a trial came to its last step with finite numbers."""
    return "diverged_at" not in result


def _spread(results: Sequence[Mapping[str, Any]], key: str) -> str:
    values = figures(results, key)
    if not values:
        return "-"
    return f"{np.mean(values):.4g} ± {np.std(values):.2g}"
