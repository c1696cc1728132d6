"""Many runs of one config file; trials that differ only in seed and floats are one vmapped program."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from kfrtrl_jax._src.compositions.values import one_line
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import (
    display,
    dry_run,
    made_with,
    memory,
    metrics,
    outcomes,
    trials,
    workdir,
)
from kfrtrl_jax.training.engines.jobs import Engine, Job
from kfrtrl_jax.training.engines.local import make_local
from kfrtrl_jax.training.group import alike
from kfrtrl_jax.training.overrides import Overrides, grid, log_uniform, paired, product, seeds
from kfrtrl_jax.training.program import Experiment, build, check_floats
from kfrtrl_jax.training.progress import make_progress

__all__ = [
    "describe",
    "grid",
    "log_uniform",
    "paired",
    "product",
    "resolve",
    "run_sweep",
    "seeds",
]


def run_sweep(
    config: Any,
    sweep: Sequence[Overrides],
    folder: Path,
    common: Overrides | None = None,
    make_engine: Callable[[Mapping[str, Experiment]], Engine] = make_local,
    group_size: int = 0,
    wandb: str = "",
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
      make_engine: from the experiments that have been built, by what their trials have in common
        (`group.alike`), to what runs the groups, see `engines`.
      group_size: the most trials that run side by side as one program; 0 for as many as fit in memory.
      wandb: the W&B project that is told of the trials; "" for none.

    Returns:
      The result of each trial, as in its summary.json: its last record, the best validation loss and
      the test loss if there is held-out data, and diverged_at and problem if it diverged.

    Raises:
      ConfigError, DataError, WorkdirError, UnsupportedCellError: before anything is computed.
      SaveError: if a state cannot be saved.
      Interrupted: on a signal; the group that was running is saved.
      SweepError: if groups ended with errors; the others are done.
    """
    configured = resolve(config, sweep, common)
    experiments: dict[str, Experiment] = {}
    for number, trial in enumerate(configured):
        if (kind := alike(trial)) in experiments:
            _check_floats([number], configured, experiments[kind])
        else:
            experiments[kind] = _built(trial)
    engine = make_engine(experiments)
    with workdir.hold(folder):
        names, notes = trials.claim(folder, configured)
        engine.gather(folder)
        runs, overrides = (dict(zip(names, values)) for values in (configured, sweep))
        data = {}
        for trial in configured:
            data.update(made_with.data_of(trial, experiments[alike(trial)].about))
        notes += made_with.bind(folder, data)
        results = trials.read_results(folder, notes.append)
        works = trials.plan(
            folder,
            runs,
            results,
            lambda kind, n: _size_of(experiments[kind], min(n, group_size or n)),
            notes.append,
        )
        for note in notes:
            display.say(f"note: {note}")
        jobs = [
            _begun(work, i, works, folder, runs, overrides, data)._replace(wandb=wandb)
            for i, work in enumerate(works, 1)
        ]
        failed = _run_jobs(engine, jobs, runs, overrides, results)
        trials.write_results(folder, overrides, results)
        if failed:
            raise trials.SweepError(
                f"{len(failed)} of {len(jobs)} groups of trials failed ({failed[0]}); the same command "
                f"runs them again"
            )
        ordered = [results[name] for name in names]
        logs = [_log(folder / "trials" / name, runs[name], results[name]) for name in names]
        outcomes.report(sweep, ordered, logs, folder)
        display.say(f"results: {folder / trials.RESULTS}, {trials.TABLE}")
    return ordered


def describe(
    config: Any,
    sweep: Sequence[Overrides],
    common: Overrides | None = None,
    group_size: int = 0,
) -> str:
    """What a sweep would run: its trials by groups, and what the first run of each group would be.

    Args:
      config: see `run_sweep`.
      sweep: likewise.
      common: likewise.
      group_size: likewise.

    Raises:
      ConfigError, DataError, UnsupportedCellError: likewise.
    """
    configured = resolve(config, sweep, common)
    together: dict[str, list[int]] = {}
    for i, trial in enumerate(configured):
        together.setdefault(alike(trial), []).append(i)
    parts = [f"{len(configured)} trials in {len(together)} groups"]
    for members in together.values():
        most = f", at most {group_size} of them" if 0 < group_size < len(members) else ""
        title = (
            f"{len(members)} trials{most} side by side: {_describe([sweep[i] for i in members])}"
        )
        check = functools.partial(_check_floats, members[1:], configured)
        parts += ["", title, dry_run.describe(configured[members[0]], check)]
    return "\n".join(parts)


def resolve(config: Any, sweep: Sequence[Overrides], common: Overrides | None = None) -> list[Any]:
    """The resolved config of each trial, see `run_sweep`.

    Raises:
      ConfigError: naming the trial.
    """
    if not isinstance(sweep, list) or not all(isinstance(trial, dict) for trial in sweep):
        raise ConfigError(
            f"get_sweep() must return a list of dicts of overrides, got {sweep!r:.60}"
        )
    if not sweep:
        raise ConfigError("the sweep has no trials: get_sweep() returned an empty list")
    return [_trial(config, common or {}, own, i) for i, own in enumerate(sweep)]


def together(common: Overrides, own: Overrides) -> dict[str, Any]:
    """The overrides of a trial, its own last; where they replace a section, nothing of it is common."""
    kept = {
        path: value
        for path, value in common.items()
        if not any(path.startswith(f"{replaced}.") for replaced in own)
    }
    return {**kept, **own}


def _check_floats(
    numbers: Iterable[int], configured: Sequence[Any], experiment: Experiment
) -> None:
    for number in numbers:
        with _named(number):
            check_floats(configured[number], experiment)


def _built(config: Any) -> Experiment:
    experiment = build(config)
    memory.check(experiment, config)
    return experiment


def _size_of(experiment: Experiment, waiting: int) -> int:
    """How many of the waiting runs of an experiment to run side by side: those that fit in memory.

    If they are more than the devices, they are a multiple of their number.
    """
    devices = jax.local_device_count()
    most = max(1, memory.available() // memory.needed(experiment)[0])
    size = min(most, waiting)
    return size - size % devices if size > devices else size


def _begun(
    work: trials.Work,
    number: int,
    works: Sequence[trials.Work],
    folder: Path,
    runs: Mapping[str, Any],
    overrides: Mapping[str, Overrides],
    data: Mapping[str, str],
) -> Job:
    """Writes down that trials run side by side; the job that runs them."""
    trials.begin(work, folder / "trials", runs)
    title = (
        f"group {number} of {len(works)}, trials {work.names[0]} to {work.names[-1]}: "
        f"{_describe([overrides[name] for name in work.names])}"
    )
    configured = tuple(runs[name].to_dict() for name in work.names)
    own = tuple(workdir.plain(overrides[name]) for name in work.names)
    first = runs[work.names[0]]
    return Job(
        work,
        configured,
        own,
        folder,
        title,
        made_with.settings(),
        data=data[configs.shown(first, "task")],
        init_from=data.get(made_with.start_of(first), ""),
        home=str(folder.absolute()),
    )


def _trial(config: Any, common: Overrides, own: Overrides, number: int) -> Any:
    with _named(number):
        return configs.resolve(config, together(common, own))


@contextlib.contextmanager
def _named(number: int) -> Iterator[None]:
    """Says in an error of a config which trial it is of."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"trial {number} of the sweep: {error}") from error


def _describe(overrides: Sequence[Overrides]) -> str:
    """The overrides that the trials of a group have in common."""
    shared = {
        key: value
        for key, value in overrides[0].items()
        if all(key in own and own[key] == value for own in overrides)
    }
    return outcomes.label_of(shared) or f"{len(overrides)} trials"


def _run_jobs(
    engine: Engine,
    jobs: Sequence[Job],
    runs: Mapping[str, Any],
    overrides: Mapping[str, Overrides],
    results: dict[str, Any],
) -> list[str]:
    """Runs jobs, and writes down and shows what each has come to as soon as it has; what failed."""
    failed = []
    tell = make_progress(jobs, runs, results)
    for job, found in engine.run(jobs):
        if isinstance(found, Exception):
            failed.append(f"trials {', '.join(job.work.names)}: {one_line(found)[:300]}")
            display.say(f"error: {failed[-1]}")
        else:
            results.update(zip(job.work.names, found))
            trials.write_results(job.folder, overrides, results)
        display.say(tell(job, found))
    return failed


def _log(folder: Path, config: Any, result: Mapping[str, Any]) -> list[metrics.Record]:
    """The log of a trial; says so if it has lost lines."""
    return metrics.read_for(
        folder,
        result.get("step", 0),
        config.log_every,
        lambda lost: display.say(f"warning: {lost}"),
    )
