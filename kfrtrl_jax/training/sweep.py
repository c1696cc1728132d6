"""Many runs of one config file; trials that differ only in seed and floats are one vmapped program."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src import xla
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import composed, display, evaluation, memory, metrics, plots, workdir
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training.factories import KINDS
from kfrtrl_jax.training.program import (
    Experiment,
    build,
)
from kfrtrl_jax.training.signals import Interrupted, catch_signals

RESULTS = "sweep.json"
_OUTCOMES = ("running_loss", "score", "sequence_length", "valid_loss", "valid_score")
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
    """Runs all trials that have no result yet.

    Args:
      config: the config that the trials override, as for `config.resolve`.
      sweep: the overrides of each trial, by path; a path may also be that of a whole section, its value
        text or a dict: {"estimator": "ok(rank=8)"}.
      folder: receives config.json (of all trials), sweep.json with the results, pictures, and a folder
        per trial, trials/NUMBER, with its config.json and metrics.jsonl.
      common: overrides of all trials, which those of a trial replace.

    Returns:
      The result of each trial: its last record, with valid_loss if there is held-out text, and
      diverged_at, the step at which it stopped being finite, if it did.

    Raises:
      ConfigError, DataError, WorkdirError, UnsupportedCellError: before anything is computed.
      Interrupted: on a signal; finished groups are kept.
    """
    if not isinstance(sweep, list) or not all(isinstance(trial, dict) for trial in sweep):
        raise ConfigError(
            f"get_sweep() must return a list of dicts of overrides, got {sweep!r:.60}"
        )
    trials = [_trial(config, common or {}, own, i) for i, own in enumerate(sweep)]
    if not trials:
        raise ConfigError("the sweep has no trials: get_sweep() returned an empty list")
    groups = _groups(trials)
    with workdir.hold(folder):
        workdir.claim(folder, {name_of(i): trial.to_dict() for i, trial in enumerate(trials)})
        path = folder / RESULTS
        results: dict[str, Any] = workdir.read_json(path)["results"] if path.exists() else {}
        for number, members in enumerate(groups, 1):
            if all(name_of(i) in results for i in members):
                continue
            title = f"group {number} of {len(groups)}, trials {members[0]} to {members[-1]}"
            display.say(f"{title}: {_describe(sweep, members)}")
            group = {i: trials[i] for i in members}
            results.update(_run_group(group, folder / "trials", len(groups) - number))
            contents = {"overrides": list(sweep), "results": dict(sorted(results.items()))}
            workdir.write_json(path, contents)
        ordered = [results[name_of(i)] for i in range(len(trials))]
        _report(sweep, ordered, folder)
    return ordered


def name_of(trial: int) -> str:
    """The name of a trial, of its folder and in the results."""
    return f"{trial:03}"


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


def _groups(trials: Sequence[Any]) -> list[list[int]]:
    """Groups of trials that one program can run together and that fit in memory.

    Raises:
      ConfigError: if a single trial does not fit.
    """
    alike: dict[str, list[int]] = {}
    for i, trial in enumerate(trials):
        flat = workdir.flatten(trial.to_dict())
        varying = configs.float_fields(trial) | {"seed"}
        key = json.dumps({name: value for name, value in flat.items() if name not in varying})
        alike.setdefault(key, []).append(i)
    groups = []
    for members in alike.values():
        config = trials[members[0]]
        experiment = build(config)
        memory.check(experiment, config)
        most = max(1, memory.available() // memory.needed(experiment)[0])
        groups += [members[i : i + most] for i in range(0, len(members), most)]
    return groups


def _run_group(group: Mapping[int, Any], folder: Path, groups_left: int) -> dict[str, Any]:
    """Runs the trials of a group side by side; returns their results by name."""
    config = next(iter(group.values()))
    flat = [workdir.flatten(trial.to_dict()) for trial in group.values()]
    # Floats that all trials share stay constants of the program.
    floats = {
        path: jnp.asarray([f[path] for f in flat])
        for path in sorted(configs.float_fields(config))
        if len({f[path] for f in flat}) > 1
    }

    def experiment(point: Mapping[str, Any]) -> Experiment:
        return build(config, point)

    init = jax.jit(jax.vmap(lambda seed, point: experiment(point).init(seed)))
    jitted = xla.jit(jax.vmap(lambda s, point: experiment(point).run_chunk(s)), donate_argnums=0)
    base = experiment({}).about
    evaluate = jax.jit(jax.vmap(base.evaluate, in_axes=(0, None)))
    held_out = base.held_out
    valid = evaluation.on_device(held_out["valid"]) if "valid" in held_out else None

    names = [name_of(i) for i in group]
    results: dict[str, Any] = {}
    diverged: dict[str, int] = {}
    show = display.make_display(config.num_steps, 0, base.words)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(show))
        show.note(str(base.check()))
        writers = []
        for name, trial in zip(names, group.values()):
            (folder / name).mkdir(parents=True, exist_ok=True)
            workdir.write_json(folder / name / workdir.CONFIG, trial.to_dict())
            writers.append(
                stack.enter_context(metrics.open_writer(folder / name, tensorboard=False))
            )
        state = init(jnp.asarray([f["seed"] for f in flat], jnp.uint32), floats)
        begun = time.monotonic()
        with display.during(show, "compiling the first chunk"):
            chunk = jitted.lower(state, floats).compile()
        lap = time.monotonic()
        signals = stack.enter_context(catch_signals())
        for step in range(config.log_every, config.num_steps + 1, config.log_every):
            if signals:
                raise Interrupted(
                    f"stopped by {signal.Signals(signals[0]).name} in a group at step "
                    f"{step - config.log_every}, {groups_left} groups after it; "
                    f"the same command continues with this group",
                    signals[0],
                )
            state, report = chunk(state, floats)
            fetched = jax.device_get(report)
            now = time.monotonic()
            rate, lap = config.log_every / (now - lap), now
            last = step == config.num_steps
            losses = None
            if valid is not None and (
                last or (config.eval_every and step % config.eval_every == 0)
            ):
                losses = evaluation.means(evaluate(state.learner.parameters, valid))
                lap = time.monotonic()
            for i, (name, writer) in enumerate(zip(names, writers)):
                own = jax.tree.map(lambda x, i=i: x[i], fetched)
                if name in diverged:
                    continue
                if own.bad_step >= 0:
                    diverged[name] = int(own.bad_step)
                    results[name] = {**results.get(name, {}), "diverged_at": diverged[name]}
                    continue
                times = {"wall_time": round(now - begun, 3), "steps_per_second": round(rate, 2)}
                record = metrics.make_record(own, step=step, **times)
                if losses is not None:
                    record["valid_loss"] = float(losses.loss[i])
                    record["valid_score"] = float(losses.score[i])
                writer.write(record)
                unit, score = base.words
                named = {"score_name": score} if score else {}
                results[name] = {**record, "loss_unit": unit, **named}
            alive = [results[name] for name in names if name not in diverged]
            if alive:
                show.update({**alive[0], **_means(alive)})
    return results


def _means(records: Sequence[metrics.Record]) -> metrics.Record:
    return {
        key: round(float(np.mean([r[key] for r in records])), 4)
        for key in _OUTCOMES
        if all(r.get(key) is not None for r in records)
    }


def _outcomes(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures to report; scores only where they are not the losses."""
    found = [key for key in _OUTCOMES if any(r.get(key) is not None for r in results)]
    scored = any("score_name" in result for result in results)
    return [key for key in found if scored or not key.endswith("score")]


def _describe(sweep: Sequence[Overrides], members: Sequence[int]) -> str:
    """The overrides that the trials of a group have in common."""
    first = sweep[members[0]]
    shared = {
        key: value
        for key, value in first.items()
        if all(sweep[i].get(key) == value for i in members)
    }
    return label_of(shared) or f"{len(members)} trials"


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


def _report(sweep: Sequence[Overrides], results: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Prints the table and draws the pictures: one row and one curve per setting, over its seeds."""
    settings: dict[str, list[int]] = {}
    for i, overrides in enumerate(sweep):
        label = label_of({k: v for k, v in overrides.items() if k != "seed"}) or "all"
        settings.setdefault(label, []).append(i)
    outcomes = _outcomes(results)
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

    curves = {
        label: [metrics.read(folder / "trials" / name_of(i) / metrics.METRICS) for i in members]
        for label, members in settings.items()
    }
    plots.plot_groups(curves, folder / "sweep.png", outcomes, words=words)
    pictures = [folder / "sweep.png"]
    for path in _swept_floats(sweep):
        lines: dict[str, dict[float, list[float]]] = {}
        for overrides, result in zip(sweep, results):
            if path in overrides and "diverged_at" not in result:
                rest = {k: v for k, v in overrides.items() if k not in ("seed", path)}
                points = lines.setdefault(label_of(rest) or "all", {})
                points.setdefault(overrides[path], []).append(result[outcomes[0]])
        if lines:
            pictures.append(folder / f"sweep_{path.split('.')[-1]}.png")
            label = plots.label_of(outcomes[0], words)
            plots.plot_response(lines, pictures[-1], path, f"final {label}")
    display.say(f"results: {folder / RESULTS}; pictures: {', '.join(map(str, pictures))}")


def _swept_floats(sweep: Sequence[Overrides]) -> list[str]:
    values: dict[str, set[float]] = {}
    for overrides in sweep:
        for path, value in overrides.items():
            if isinstance(value, float):
                values.setdefault(path, set()).add(value)
    return [path for path, seen in values.items() if len(seen) > 1]


def finished(results: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """A figure of those trials that did not diverge."""
    return [r[key] for r in results if r.get(key) is not None and "diverged_at" not in r]


def _spread(results: Sequence[Mapping[str, Any]], key: str) -> str:
    values = finished(results, key)
    if not values:
        return "-"
    return f"{np.mean(values):.4g} ± {np.std(values):.2g}"
