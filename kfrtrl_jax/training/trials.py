"""The trials of a sweep on disk: their names, their results, and which of them run side by side.

A trial is known by its config without the fields that may be extended, so a sweep that is run again may
have more trials, in any order, or more steps. What is there is never run twice.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kfrtrl_jax.errors import WorkdirError
from kfrtrl_jax.training import workdir
from kfrtrl_jax.training.checkpoints import last_written, was_written
from kfrtrl_jax.training.config import completed
from kfrtrl_jax.training.group import alike
from kfrtrl_jax.training.loop import FREE_FIELDS, require_ahead

RESULTS = "sweep.json"
TABLE = "results.csv"
_MEMBERS = "group.json"

Results = dict[str, dict[str, Any]]


class SweepError(RuntimeError):
    """A sweep of which some trials could not be run."""


class Work(NamedTuple):
    """Trials to run side by side.

    Attributes:
      folder: of their checkpoints.
      names: of the trials.
    """

    folder: Path
    names: tuple[str, ...]


def name_of(number: int) -> str:
    """The name of a trial, of its folder and in the results."""
    return f"{number:03}"


def identity(config: Mapping[str, Any]) -> str:
    """What a trial is known by: its config without the fields that may differ, as text."""
    flat = workdir.flatten(completed(config))
    return workdir.as_text({key: value for key, value in flat.items() if key not in FREE_FIELDS})


def claim(folder: Path, configs: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Binds a sweep's folder to its trials, and names them.

    Args:
      folder: locked by this process.
      configs: the resolved config of each trial.

    Returns:
      The name of each trial; notes for the user.

    Raises:
      WorkdirError: if the folder has a trial that is not among them, or that has more steps.
    """
    path, notes = folder / workdir.CONFIG, []
    known: dict[str, Any] = {}
    try:
        known = workdir.read_document(path) if path.exists() else {}
    except workdir.DamagedError as error:
        notes.append(f"{error}; moved to {workdir.set_aside(path)} and made from the trials' own")
        known = _from_trials(folder)
    waiting = {name: identity(config) for name, config in known.items()}
    names = []
    for config in configs:
        own = identity(config.to_dict())
        found = [name for name, other in waiting.items() if other == own]
        names.append(found[0] if found else "")
        if found:
            del waiting[found[0]]
    new = [i for i, name in enumerate(names) if not name]
    if waiting:
        lost = next(iter(waiting))
        like = configs[new[0]].to_dict() if new else {}
        before = completed(known[lost])
        differs = f" ({workdir.differences(before, like, FREE_FIELDS)})" if new else ""
        raise WorkdirError(
            f"workdir {folder} was made by another sweep: its trial {lost} is not in this one"
            f"{differs}; a sweep may get more trials or more steps; choose another --workdir"
        )
    free = max((int(name) for name in known), default=-1) + 1
    for number, i in enumerate(new, free):
        names[i] = name_of(number)
    reached = _reached(folder)
    for name, config in zip(names, configs):
        require_ahead(f"trial {name} of {folder}", reached.get(name), config.num_steps)
    whole = {name: config.to_dict() for name, config in zip(names, configs, strict=True)}
    workdir.write_document(path, dict(sorted(whole.items())))
    return names, notes


def _reached(folder: Path) -> dict[str, int]:
    """The steps that trials have come to, of those that are done or were saved."""
    steps: dict[str, int] = {}
    for path in (folder / "groups").glob(f"*/{_MEMBERS}"):
        with contextlib.suppress(workdir.DamagedError):
            for name in workdir.read_document(path)["trials"]:
                steps[name] = last_written(path.parent) or 0
    with contextlib.suppress(WorkdirError):
        for trial in workdir.read_document(folder / RESULTS)["trials"]:
            if trial["result"] is not None:
                steps[trial["trial"]] = max(trial["result"]["step"], steps.get(trial["trial"], 0))
    return steps


def read_results(folder: Path, warn: Callable[[str], None]) -> Results:
    """The results so far, by name; a damaged file is set aside, and made anew from the checkpoints."""
    path = folder / RESULTS
    if not path.exists():
        return {}
    try:
        trials = workdir.read_document(path)["trials"]
    except workdir.DamagedError as error:
        warn(f"{error}; moved to {workdir.set_aside(path)} and made from the checkpoints")
        return {}
    return {trial["trial"]: trial["result"] for trial in trials if trial["result"] is not None}


def write_results(
    folder: Path, named: Mapping[str, Mapping[str, Any]], results: Mapping[str, Any]
) -> None:
    """Writes sweep.json and results.csv.

    Args:
      folder: of the sweep.
      named: the overrides of each trial, by name.
      results: those so far, by name.
    """
    trials = [
        {"trial": name, "overrides": own, "result": results.get(name)}
        for name, own in named.items()
    ]
    workdir.write_document(folder / RESULTS, {"trials": trials})
    paths = list(dict.fromkeys(path for own in named.values() for path in own))
    with workdir.replacing(folder / TABLE) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", *paths, "status", "score", "loss", "wall_time"])
        for name, own in named.items():
            result = results.get(name, {})
            status = "diverged" if "diverged_at" in result else "done" if result else "waiting"
            loss = result.get("best_valid_loss", result.get("running_loss"))
            figures = [status, result.get("score"), loss, result.get("wall_time")]
            writer.writerow([name, *(own.get(path, "") for path in paths), *figures])


def finished(folder: Path, warn: Callable[[str], None]) -> list[Mapping[str, Any]]:
    """The trials of a sweep that have a result, as `write_results` wrote them.

    Args:
      folder: the workdir.
      warn: called with a line if there are others.

    Raises:
      WorkdirError: if the folder is of no sweep, if no trial is finished, or if the file is damaged.
    """
    if not (folder / RESULTS).exists():
        raise WorkdirError(
            f"{folder} has no {RESULTS}: it is of no sweep, or of one that just began"
        )
    found = workdir.read_document(folder / RESULTS)["trials"]
    done = [trial for trial in found if trial["result"] is not None]
    if not done:
        raise WorkdirError(f"{folder} has no finished trial")
    if waiting := len(found) - len(done):
        warn(f"{waiting} of {len(found)} trials of {folder} are left out, as they are not finished")
    return done


def finished_folders(folder: Path, warn: Callable[[str], None]) -> list[Path]:
    """The workdirs of the finished trials of a sweep; that of a run itself.

    Args:
      folder: the workdir of either.
      warn: called with a line if there are trials that are not finished.

    Raises:
      WorkdirError: if no trial is finished, or a file is damaged.
    """
    if not (folder / RESULTS).exists():
        return [folder]
    return [folder / "trials" / trial["trial"] for trial in finished(folder, warn)]


def is_done(config: Any, result: Mapping[str, Any] | None) -> bool:
    """Whether a trial needs no more steps."""
    if result is None:
        return False
    return "diverged_at" in result or result["step"] >= config.num_steps


def plan(
    folder: Path,
    configs: Mapping[str, Any],
    results: Mapping[str, Any],
    size_of: Callable[[str, int], int],
    warn: Callable[[str], None],
) -> list[Work]:
    """The groups that have something to do, in the order in which the trials are listed.

    Args:
      folder: of the sweep.
      configs: the resolved config of each trial, by name.
      results: those so far, by name.
      size_of: from what trials have in common (`group.alike`) and their number to how many of them run
        side by side.
      warn: called with a line if something is set aside.

    Raises:
      WorkdirError: if trials that ran side by side are no longer alike.
    """
    waiting = [name for name in configs if not is_done(configs[name], results.get(name))]
    works: list[Work] = []
    for path in sorted((folder / "groups").glob("*/")):
        if not was_written(path):
            # Nothing is lost if its trials are grouped anew.
            continue
        names = _members(path, warn)
        unfinished = [name for name in names if name in waiting]
        if not unfinished:
            continue
        if len({alike(configs[name]) for name in names}) > 1:
            raise WorkdirError(
                f"the trials {', '.join(names)} of {folder} run side by side: give all of them the "
                f"same num_steps"
            )
        works.append(Work(path, names))
        waiting = [name for name in waiting if name not in names]
    together: dict[str, list[str]] = {}
    for name in waiting:
        together.setdefault(alike(configs[name]), []).append(name)
    for kind, own in together.items():
        while own:
            size = size_of(kind, len(own))
            members, own = tuple(own[:size]), own[size:]
            works.append(Work(folder / "groups" / members[0], members))
    place = {name: number for number, name in enumerate(configs)}
    return sorted(works, key=lambda work: min(place[name] for name in work.names))


def begin(work: Work, trials_folder: Path, configs: Mapping[str, Any]) -> None:
    """Writes down which trials run side by side, and the config of each beside its log."""
    work.folder.mkdir(parents=True, exist_ok=True)
    workdir.write_document(work.folder / _MEMBERS, {"trials": list(work.names)})
    for name in work.names:
        (trials_folder / name).mkdir(parents=True, exist_ok=True)
        workdir.write_document(trials_folder / name / workdir.CONFIG, configs[name].to_dict())


def _members(folder: Path, warn: Callable[[str], None]) -> tuple[str, ...]:
    path = folder / _MEMBERS
    if not path.exists():
        return ()
    try:
        return tuple(workdir.read_document(path)["trials"])
    except workdir.DamagedError as error:
        place = workdir.set_aside(folder, folder.parent.parent)
        warn(f"{error}; {folder} is moved to {place}, and its trials are run from the beginning")
        return ()


def _from_trials(folder: Path) -> dict[str, Any]:
    """The configs that lie beside the trials' logs, as far as they are whole."""
    found = {}
    for path in sorted((folder / "trials").glob(f"*/{workdir.CONFIG}")):
        try:
            found[path.parent.name] = workdir.read_document(path)
        except workdir.DamagedError:
            continue
    return found
