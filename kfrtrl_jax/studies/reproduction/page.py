"""The results as one HTML page that needs no network: leaderboards, curves and configs.

The page holds its data as JSON, and the library that draws its charts. Its script puts every name
and text in as text, never as HTML, and its policy forbids the browser to load anything.
"""

from __future__ import annotations

import itertools
import json
import re
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies.reproduction import budget, cosines, report, runs, tables, times
from kfrtrl_jax.studies.reproduction.chapters import CHAPTERS, Chapter
from kfrtrl_jax.studies.reproduction.cosines import Cosines
from kfrtrl_jax.studies.reproduction.results import Results
from kfrtrl_jax.studies.reproduction.runs import Run
from kfrtrl_jax.training.spreads import spread

_PACKAGE = "kfrtrl_jax.studies.reproduction"
_BYTES_PER_KIB = 1024
# The choice of the leaderboard that compares every method at its own last step.
LAST = "last"


def render(results: Results) -> str:
    """The page.

    Raises:
      ConfigError: if plotly is not installed.
    """
    try:
        from plotly import offline
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the page of results needs plotly: pip install 'kfrtrl_jax[report]' brings it"
        ) from error
    return html(content(results), offline.get_plotlyjs())


def html(content: Mapping[str, Any], library: str) -> str:
    """The page of a content.

    Args:
      content: see `content`.
      library: the source of plotly.js.
    """
    return string.Template(_file("page.html")).substitute(
        style=_file("page.css"),
        library=re.sub("</(script)", r"<\\/\1", library, flags=re.IGNORECASE),
        data=json.dumps(content, allow_nan=False).replace("<", r"\u003c"),
        script=_file("page.js"),
    )


def content(results: Results) -> dict[str, Any]:
    """All that the page shows, as plain values.

    Returns:
      "tasks": for each task of each study its figures, its methods with their scores, costs and
      curves, the differences between its configs, and what it was made with.
    """
    own = {name: _shown(CHAPTERS[name], of_study) for name, of_study in results.own.items()}
    colours = _colours([runs.methods_of(of_study) for of_study in own.values()])
    tasks = []
    for name, record in results.records.items():
        known = cosines.of_study(results, name)
        for task in dict.fromkeys(run.task for run in own[name]):
            here = [run for run in own[name] if run.task == task]
            methods = [
                _method(CHAPTERS[name], of_one, known)
                for of_both in (here, results.public[name])
                for of_one in runs.by_method(of_both).values()
            ]
            for method in methods:
                method["colour"] = colours.get(method["name"])
            tasks.append(_task(CHAPTERS[name], record, here, methods))
    return {"tasks": tasks}


def _shown(chapter: Chapter, own: Sequence[Run]) -> Sequence[Run]:
    """The runs of a study that the page shows: of several learning rates those at the best."""
    return budget.at_best_rates(own, chapter.tasks) if chapter.tasks else own


def _colours(studies: Sequence[Sequence[str]]) -> dict[str, int]:
    """The number of each method's colour, the same in all studies, and no other's in any of them."""
    colours: dict[str, int] = {}
    for name in dict.fromkeys(name for names in studies for name in names):
        beside = {colours.get(other) for names in studies if name in names for other in names}
        colours[name] = next(number for number in itertools.count() if number not in beside)
    return colours


def _task(
    chapter: Chapter,
    record: Mapping[str, Any],
    own: Sequence[Run],
    methods: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    figures = [
        figure._asdict()
        for figure in chapter.figures_of(own[0].task)
        if any(method["curves"][figure.field]["seeds"] for method in methods)
    ]
    steps = [str(step) for step in report.STEPS]
    return {
        "study": chapter.title,
        "name": own[0].task,
        "protocol": " ".join(chapter.protocol.split()),
        "figures": figures,
        "steps": [step for step in steps if any(step in method["scores"] for method in methods)],
        "lanes": own[0].lanes,
        "timed": bool(times.of(record)),
        "config": record["config"],
        "configs": configs(own),
        "made_with": report.made_with(record),
        "methods": methods,
    }


def _method(chapter: Chapter, own: Sequence[Run], known: Cosines) -> dict[str, Any]:
    """What is known of a method, whose runs these are."""
    first = own[0]
    fields = [figure.field for figure in chapter.figures_of(first.task)]
    cosine = None if first.status == "public" else cosines.of(first, known)
    time = tables.time_of(own)
    return {
        "name": first.method,
        "public": first.status == "public",
        "status": runs.status_of(own),
        "scores": _scores(own, fields),
        "results": {
            name: _spread([run.results[name] for run in own if name in run.results])
            for name in ("best_valid_loss", "test_loss")
        },
        "cosine": cosine,
        "ms_per_step": time.mean if time.runs else None,
        "kib_per_lane": first.bytes_per_lane / _BYTES_PER_KIB if first.bytes_per_lane else None,
        "command": first.command,
        "curves": {field: _curves(own, field) for field in fields},
    }


def _scores(own: Sequence[Run], fields: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each figure at the last step that all runs have it, under `LAST`, and at the table's steps."""
    chosen = {LAST: {field: tables.last_common_step(own, field) for field in fields}}
    chosen |= {str(step): dict.fromkeys(fields, step) for step in report.STEPS}
    scores: dict[str, dict[str, Any]] = {}
    for choice, steps in chosen.items():
        for field, step in steps.items():
            found = _spread(tables.values_at(own, field, step))
            if found:
                scores.setdefault(choice, {})[field] = {**found, "step": step}
    return scores


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    """The mean, the standard deviation (None for a single run) and the number of values."""
    if not values:
        return None
    found = spread(values)
    return {
        "mean": found.mean,
        "deviation": found.deviation if found.runs > 1 else None,
        "runs": found.runs,
    }


def _curves(own: Sequence[Run], field: str) -> dict[str, Any]:
    """The curve of each seed, and their mean."""
    kept = [run for run in own if run.series.get(field)]
    seeds = [{"seed": run.seed, "lanes": run.lanes, **_curve(run, field)} for run in kept]
    finite = [
        curve for run, curve in zip(kept, seeds, strict=True) if run.status != "diverged"
    ] or seeds
    return {"seeds": seeds, "mean": mean_curve(finite) if finite else None}


def _curve(run: Run, field: str) -> dict[str, list[Any]]:
    values, seconds = run.series[field], run.series.get("wall_time", {})
    steps = sorted(values)
    return {
        "step": steps,
        "seconds": [seconds[step] for step in steps] if seconds else [],
        "value": [values[step] for step in steps],
    }


def mean_curve(curves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of curves over the steps that all have come to, each interpolated between its own.

    Args:
      curves: with "step", "seconds" (empty if unknown), "value" and "lanes".

    Returns:
      The same, with the standard deviation of single runs under "deviation", empty for one run.
    """
    start = max(curve["step"][0] for curve in curves)
    end = min(curve["step"][-1] for curve in curves)
    steps = sorted({step for curve in curves for step in curve["step"] if start <= step <= end})

    def at_steps(name: str) -> np.ndarray:
        return np.array([np.interp(steps, curve["step"], curve[name]) for curve in curves])

    values = at_steps("value")
    timed = all(curve["seconds"] for curve in curves)
    return {
        "lanes": curves[0]["lanes"],
        "step": steps,
        "seconds": _rounded(at_steps("seconds").mean(0)) if timed else [],
        "value": _rounded(values.mean(0)),
        "deviation": _rounded(values.std(0, ddof=1)) if len(curves) > 1 else [],
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def configs(own: Sequence[Run]) -> dict[str, Any]:
    """The overrides of the methods side by side.

    Args:
      own: runs of a task.

    Returns:
      "common": [field, value] of what all methods override alike; "fields": the others; "rows":
      a method each, with its value of each of these fields, None where it has the study's own.
    """
    overrides = {
        method: {
            field: value if isinstance(value, str) else json.dumps(value)
            for field, value in of_one[0].overrides.items()
            if field not in ("seed", "task")
        }
        for method, of_one in runs.by_method(own).items()
    }
    fields = list(dict.fromkeys(field for fields in overrides.values() for field in fields))
    alike = [
        field
        for field in fields
        if len(overrides) > 1 and len({fields.get(field) for fields in overrides.values()}) == 1
    ]
    differing = [field for field in fields if field not in alike]
    first = next(iter(overrides.values()), {})
    return {
        "common": [[field, first[field]] for field in alike],
        "fields": differing,
        "rows": [
            {"method": method, "values": [fields.get(field) for field in differing]}
            for method, fields in overrides.items()
        ],
    }


def _file(name: str) -> str:
    return (resources.files(_PACKAGE) / name).read_text(encoding="utf-8")
