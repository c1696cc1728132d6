"""RESULTS.md: what every study has come to, from the committed records alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kfrtrl_jax.studies.fidelity import gradient_noise, noise_tables
from kfrtrl_jax.studies.reproduction import (
    budget,
    chapters,
    pictures,
    records,
    runs,
    tables,
    times,
)
from kfrtrl_jax.studies.reproduction.chapters import CHAPTERS, Chapter
from kfrtrl_jax.studies.reproduction.results import RECORDS, Results
from kfrtrl_jax.studies.reproduction.runs import Run

# Fields of configs/noise.py that describe an untrained cell.
_OF_UNTRAINED = ("cell", "init_scale", "input_size", "hidden_size", "batch_size")
STEPS = records.STEPS


INTRODUCTION = f"""# Results

Made by `kfrtrl report` from the records in
[experiments/results/{RECORDS}](experiments/results/{RECORDS}), which `kfrtrl
reproduce --study=NAME` writes: every figure below is computed, none is typed. Figures
are means over seeds ± the standard deviation of a single run, with the number of seeds in
brackets; one seed has no spread. Differences are paired over seeds, with the 95 % confidence
interval of Student's t; where that includes zero no method is called better. The time of a step is
that of a run alone, the methods of a study taking turns in one process (`--time_methods`); a method
that was not timed with the others has none, and a study that has not been timed has the medians of
its runs, which had others beside them.
[docs/speed.md](docs/speed.md) has more ratios. A run that is still short of its last step
says so, and so does a method that was run for fewer steps or seeds than the full scale of its study
has (`--scale=full`). A seed that diverged has no figures after that, and is told beside the mean of
the others.
"""


def render(results: Results) -> str:
    """RESULTS.md."""
    parts = [INTRODUCTION]
    for name, record in results.records.items():
        parts.append(_chapter(CHAPTERS[name], record, results.own[name], results.public[name]))
    if results.noises:
        parts += [f"## {chapters.NOISE_TITLE}\n", chapters.NOISE_PROTOCOL.lstrip()]
        parts += [_noise(chapters.NOISE[name], record) for name, record in results.noises.items()]
    return "\n".join(parts)


def draw(results: Results, out: Path) -> list[Path]:
    """Draws a picture of each study that has curves or many tasks, and gives their paths.

    Args:
      results: of which studies are drawn.
      out: the folder of the pictures.
    """
    paths = []
    for name, own in results.own.items():
        chapter, path = CHAPTERS[name], out / f"{name}.png"
        if chapter.by_task and tables.finished(own):
            pictures.draw_tasks(path, own, chapter.figures[0], chapter.guessing)
            paths.append(path)
        drawn = [run for run in own if run.method in chapter.drawn and run.status != "diverged"]
        if drawn:
            pictures.draw(path, drawn, results.public[name], chapter.figures[0], chapter.drawn)
            paths.append(path)
    return paths


def _chapter(
    chapter: Chapter, record: Mapping[str, Any], own: Sequence[Run], public: Sequence[Run]
) -> str:
    parts = [f"## {chapter.title}\n", f"{_markdown(chapter.protocol.strip())}\n"]
    if chapter.tasks:
        return "\n".join([*parts, *_budgets(chapter, record, own)])
    if chapter.by_task:
        (figure,) = chapter.figures
        parts.append(f"↑ is above {chapter.baseline} beyond noise, ↓ below it:\n")
        parts.append(tables.by_task(own, figure.field, figure.digits, chapter.baseline))
        parts.append(f"Made with {'; '.join(made_with(record))}.\n")
        return "\n".join(parts)
    for figure in chapter.figures:
        parts.append(f"{_markdown(_sentence(figure.words))}:\n")
        parts.append(tables.at_steps([*own, *public], figure.field, STEPS, figure.digits))
    first = chapter.figures[0]
    step = _last_step(own, first.field, chapter.baseline)
    compared = tables.differences(own, chapter.baseline, first.field, step, first.digits)
    if compared:
        words = _markdown(_sentence(first.words))
        parts.append(f"{words} after {step:,} steps, paired over seeds:\n")
        parts.append(compared)
    tested = tables.results(own)
    if tested:
        parts.append("With the parameters of the lowest validation loss, bits per character:\n")
        parts.append(tested)
    parts.append("What it costs, and how to make it:\n")
    parts.append(tables.costs(own))
    parts.append(f"Made with {'; '.join(made_with(record))}.\n")
    return "\n".join(parts)


def _budgets(chapter: Chapter, record: Mapping[str, Any], own: Sequence[Run]) -> list[str]:
    timed, parts = times.of(record), []
    for which, runs_of in (
        ("The methods that were run at the full scale", budget.at_full_scale(own)),
        ("All methods", own),
    ):
        if len(runs.methods_of(runs_of)) < 2:
            continue
        if timed:
            by_time = budget.same_time(runs_of, chapter.tasks, timed)
            parts.append(f"{which}, at the same wall time:\n")
            parts.append(budget.table(by_time, chapter.tasks, timed))
        by_steps = budget.same_steps(runs_of, chapter.tasks)
        parts.append(f"{which}, at the same number of time steps:\n")
        parts.append(budget.table(by_steps, chapter.tasks, timed))
    parts.append(f"Made with {'; '.join(made_with(record))}.\n")
    return parts


def _noise(words: str, record: Mapping[str, Any]) -> str:
    rows = [gradient_noise.Noise(**row) for row in record["rows"]]
    given, made = record["config"], record["made_with"]
    where = (
        f"on {given['stream'] or 'the stream of its run'}"
        if given["trained"]
        else f"{given['cell']} n = {given['hidden_size']}, batch {given['batch_size']}, random inputs"
    )
    draws = f"{given['num_steps']} steps, {given['draws']} draws"
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    unused = _OF_UNTRAINED if given["trained"] else ()
    kept = {name: value for name, value in given.items() if name not in unused and value != ""}
    options = [f"--config.{name}={runs.written(value)}" for name, value in kept.items()]
    command = shlex.join(["kfrtrl", "noise", *options, "--workdir=runs/noise"])
    return "\n".join(
        [
            f"{words} ({where}; {draws}):\n",
            noise_tables.markdown(rows, chapters.PAPER_NAMES),
            f"`{command}`\n",
            f"Made with {versions}; commit {made['commit']}.\n",
        ]
    )


def _last_step(own: Sequence[Run], field: str, baseline: str) -> int:
    """The last of the steps in tables that a seed of the baseline has come to; 0 for none."""
    series = [run.series.get(field, {}) for run in own if run.method == baseline]
    return max((s for s in STEPS if any(s in values for values in series)), default=0)


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def _markdown(text: str) -> str:
    """Plain text in Markdown."""
    return text.replace("*", r"\*")


def made_with(record: Mapping[str, Any]) -> list[str]:
    """What a study was made with: versions, precision, devices, and each sitting's commit."""
    lines: list[str] = []
    for made in record["made_with"]:
        versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
        device = "" if made["device"] == "cpu" else f" with {made['device']}"
        own = [
            f"{versions}, {made['settings']['precision']}",
            *(
                f"commit {s['commit'] or 'unknown'} on {s['processor']}{device}, "
                f"cores used: {s['cores']}"
                for s in made["sittings"]
            ),
        ]
        lines += [line for line in own if line not in lines]
    if times.of(record):
        lines.append(f"steps timed on {record['timed_on']}")
    return lines
