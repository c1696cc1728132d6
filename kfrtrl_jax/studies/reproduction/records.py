"""What a study has come to, small enough to be kept with the code: a curve and a summary per trial.

A study may be run in parts, on several machines; the record says with what each trial was made.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kfrtrl_jax.errors import ConfigError, WorkdirError
from kfrtrl_jax.studies.reproduction import times
from kfrtrl_jax.studies.reproduction.study import SCALES, Study, load, path_of
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import made_with, memory, metrics, sweep, trials, workdir
from kfrtrl_jax.training.program import build

# The steps of tables.
STEPS = (10_000, 30_000, 60_000, 100_000, 200_000, 300_000, 500_000, 1_000_000)
# Of a curve, or of each half, quarter, ... that it begins with; a picture is some hundred points wide.
_POINTS = 100
# With so many trials each is kept with fewer points.
_MANY, _FEW_POINTS = 200, 20
_FIELDS = ("step", "wall_time", "running_loss", "sequence_length", "valid_loss", "score")
_OF_STUDY = ("study", "config", "made_with", "trials")
_OF_TRIAL = (
    "method", "task", "cell", "overrides", "lanes", "bytes_per_lane", "status", "steps",
    "planned_steps", "ms_per_step", "curve", "made_with",
)  # fmt: skip
_MADE_WITH = ("settings", "data", "versions", "device", "sittings")
# What a summary has beside the last record.
_RESULTS = ("best_valid_loss", "best_step", "test_loss", "diverged_at", "problem")


def collect(name: str, folder: Path, common: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads the trials of a study, finished or not, from the workdir of its sweep.

    Args:
      name: of the study.
      folder: the workdir, which may be in use.
      common: overrides of all trials, as the sweep had them.

    Returns:
      A record of the study: plain values, see `write`. Its "made_with" is a list of what trials were
      made with, and that of a trial a place in it.

    Raises:
      WorkdirError: if the folder is not of a sweep of this study.
    """
    stored = workdir.read_document(folder / workdir.CONFIG)
    if not all(isinstance(config, Mapping) and "num_steps" in config for config in stored.values()):
        raise WorkdirError(f"{folder} is of no sweep; give the workdir of one of the study {name}")
    known = {
        trials.identity(config): (number, config["num_steps"]) for number, config in stored.items()
    }
    all_trials = len(known)
    points = _POINTS if len(known) <= _MANY else _FEW_POINTS
    made = workdir.read_document(folder / made_with.FILE)
    found, units = [], {}
    for study, overrides in _trials(name):
        (config,) = sweep.resolve(study.config, [overrides], dict(common or {}))
        number, planned = known.pop(trials.identity(config.to_dict()), (None, 0))
        if number is None:
            continue
        record = _trial(folder / "trials" / number, planned, points)
        if record is None:
            continue
        method, task = study.method_of(overrides), overrides.get("task", config.task.name)
        if (method, task) not in units:
            units[method, task] = _bytes_per_lane(config)
        found.append(
            {
                "method": method,
                "task": task,
                "cell": config.cell.name,
                "overrides": _without_steps(sweep.together(dict(common or {}), overrides)),
                "lanes": config.task.batch_size,
                "bytes_per_lane": units[method, task],
                "made_with": 0,
                **record,
            }
        )
    if len(known) == all_trials:
        raise WorkdirError(
            f"{folder} has no trial of the study {name}: it is of another sweep, or was run with other "
            f"overrides"
        )
    return {
        "study": name,
        "config": path_of(name),
        "made_with": [{field: made.get(field, []) for field in _MADE_WITH}],
        **times.read(folder),
        "trials": found,
    }


def merge(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """One record of the same study from two, such as of its parts on two machines.

    Of a trial that both have, the one that has come further is kept, and the new one if they are equal;
    one that diverged has come as far as was planned, or of two runs the other would always count. Only
    methods that took turns can be compared, so times are those of one record: of that which has more of
    them, and of the new one if both have as many.

    Raises:
      ConfigError: if they are of different studies, data or precisions.
    """
    name = new["study"]
    if old["study"] != name:
        raise ConfigError(f"a record of {old['study']} cannot take trials of the study {name}")
    for one, other in itertools.product(new["made_with"], old["made_with"]):
        _require_alike(one, other)
    chosen: dict[str, tuple[Any, Any]] = {}
    for record in (old, new):
        for trial in record["trials"]:
            key = _key(trial["overrides"])
            if key not in chosen or _came_to(trial) >= _came_to(chosen[key][0]):
                chosen[key] = trial, record["made_with"][trial["made_with"]]
    places = {_key(_without_steps(own)): place for place, (_, own) in enumerate(_trials(name))}
    ordered = sorted(chosen, key=lambda key: places.get(key, len(places)))
    made: list[Any] = []
    for key in ordered:
        if chosen[key][1] not in made:
            made.append(chosen[key][1])
    timed = max((new, old), key=lambda record: len(times.of(record)))
    return {
        "study": name,
        "config": path_of(name),
        "made_with": made,
        **{field: timed[field] for field in times.FIELDS if field in timed},
        "trials": [
            {**trial, "made_with": made.index(its)}
            for trial, its in (chosen[key] for key in ordered)
        ],
    }


def _came_to(trial: Mapping[str, Any]) -> int:
    """The step up to which it is known what becomes of a trial."""
    return int(trial["planned_steps" if trial["status"] == "diverged" else "steps"])


def require_file(path: Path) -> None:
    """Refuses a folder, before anything is run, as the file that records are written to.

    Raises:
      ConfigError: if it is one.
    """
    if path.is_dir():
        raise ConfigError(f"--records={path} is a folder; give the name of a file")


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a study's record as JSON with a line per trial."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({key: value for key, value in record.items() if key != "trials"}, indent=1)
    lines = ",\n".join(f"  {json.dumps(trial)}" for trial in record["trials"])
    workdir.write_text(
        path, f'{head.rstrip().removesuffix("}").rstrip()},\n "trials": [\n{lines}\n ]\n}}\n'
    )


def read_study(path: Path) -> dict[str, Any]:
    """A study's record, see `write`.

    Raises:
      ConfigError: if the file is none, with what it lacks.
    """
    record = _read(path, "a study", _OF_STUDY)
    for number, trial in enumerate(record["trials"]):
        _require(path, f"trial {number} of a study", trial, _OF_TRIAL)
    return record


def read_noise(path: Path) -> dict[str, Any]:
    """A record of the noise of estimators, as `kfrtrl noise` writes it.

    Raises:
      ConfigError: if the file is none, with what it lacks.
    """
    return _read(path, "noise", ("config", "made_with", "rows"))


def _read(path: Path, of: str, fields: Sequence[str]) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not a record of {of}: it is not JSON, {error}") from error
    _require(path, of, record, fields)
    return record


def _require(path: Path, of: str, record: Any, fields: Sequence[str]) -> None:
    missing = [field for field in fields if not isinstance(record, dict) or field not in record]
    if missing:
        raise ConfigError(
            f"{path} is not a record of {of} by this version: it has no {', '.join(missing)}; "
            f"`kfrtrl reproduce --only_collect --records=FILE` and `kfrtrl noise` write them"
        )


def _require_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuses trials whose figures cannot be compared; commits and devices may differ."""
    for task in one["data"].keys() & other["data"].keys():
        if one["data"][task] != other["data"][task]:
            raise ConfigError(
                f"the two records are of other data: what {task} read is not the same"
            )
    precisions = [made["settings"]["precision"] for made in (one, other)]
    if precisions[0] != precisions[1]:
        raise ConfigError(f"one record is in {precisions[0]}, the other in {precisions[1]}")


def _trials(name: str) -> Iterator[tuple[Study, dict[str, Any]]]:
    """The trials of all scales, the largest first, each once."""
    seen = set()
    for scale in reversed(SCALES):
        study = load(name, scale)
        for overrides in study.trials:
            key = _key(_without_steps(overrides))
            if key not in seen:
                seen.add(key)
                yield study, overrides


def _without_steps(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in overrides.items() if key != "num_steps"}


def _key(overrides: Mapping[str, Any]) -> str:
    return json.dumps(overrides, sort_keys=True)


def _trial(folder: Path, planned: int, points: int) -> dict[str, Any] | None:
    """The curve and the summary of a trial; None if it has come to nothing yet."""
    log = metrics.read(folder / metrics.METRICS)
    path = folder / workdir.SUMMARY
    summary = workdir.read_document(path) if path.exists() else {}
    diverged = "diverged_at" in summary
    if not log and not diverged:
        return None
    steps = log[-1]["step"] if log else 0
    done = bool(summary) and steps >= planned
    rates = [record["steps_per_second"] for record in log]
    return {
        "status": "diverged" if diverged else "done" if done else "running",
        "steps": steps,
        "planned_steps": planned,
        "seconds": log[-1]["wall_time"] if log else 0.0,
        # A run shares its machine with others: the median is less disturbed than the mean.
        "ms_per_step": round(1000 / float(np.median(rates)), 4) if rates else 0.0,
        **{key: summary[key] for key in _RESULTS if (done or diverged) and key in summary},
        "curve": _curve(log, points),
    }


def _curve(log: Sequence[metrics.Record], points: int) -> dict[str, list[Any]]:
    """Some records of a log: round steps, the last, all evaluations, the steps of tables.

    Every first, second, fifth, tenth, ... record, so that the curves of runs of all lengths have steps
    in common. Early ones are as dense as those of a shorter run: what is read at an early step of a
    long run is read where it is in short ones.
    """
    kept = {*range(len(log))[-1:]}
    for i, record in enumerate(log):
        # That of a run of so many records, a power of two.
        length = min(len(log), 2 ** i.bit_length())
        is_known = record.get("valid_loss") is not None or record["step"] in STEPS
        if is_known or (i + 1) % _stride(length, points) == 0:
            kept.add(i)
    chosen = [log[i] for i in sorted(kept)]
    return {
        field: [_rounded(record.get(field)) for record in chosen]
        for field in _FIELDS
        if field == "step" or any(record.get(field) is not None for record in chosen)
    }


def _stride(length: int, points: int) -> int:
    """The first of 1, 2, 5, 10, ... that leaves at most so many points."""
    strides = (factor * 10**power for power in itertools.count() for factor in (1, 2, 5))
    return next(stride for stride in strides if length <= stride * points)


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _bytes_per_lane(config: Any) -> int:
    """Bytes that one more lane adds to the state of a run."""
    more = configs.resolve(config, {"task.batch_size": config.task.batch_size + 1})
    state, larger = (memory.needed(build(c))[0] for c in (config, more))
    return (larger - state) // 2
