"""RESULTS.md: what every study has come to, from the committed records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kfrtrl_jax.studies.reproduction import pictures, records, runs, tables
from kfrtrl_jax.studies.reproduction.runs import Run

RECORDS, REFERENCE = "reproduction", "reference"
STEPS = (10_000, 30_000, 60_000, 100_000, 200_000, 300_000, 500_000, 1_000_000)


class Figure(NamedTuple):
    """A figure that a study is about.

    Attributes:
      field: in the log.
      words: what it is.
      digits: behind the point.
      rises: whether more of it is better.
    """

    field: str
    words: str
    digits: int
    rises: bool = False


class Chapter(NamedTuple):
    """What is said of a study, as plain text.

    Attributes:
      title: of the study.
      protocol: in words.
      figures: the first is the one that methods are compared by.
      baseline: the method that others are compared with.
      drawn: the methods in the picture.
      by_task: whether it is several tasks, of which the last figures count.
    """

    title: str
    protocol: str
    figures: Sequence[Figure]
    baseline: str
    drawn: Sequence[str] = ()
    by_task: bool = False


CHAPTERS = {
    "copy": Chapter(
        "Copy task",
        """
A recurrent highway network n = 128 memorizes strings of bits whose length T* grows with its
success; batch 16, Adam 10^-3.5, the gradient of the cell clipped at norm 1, an update at every
step. The score is T*, which needs memory over T* + 1 steps. KF-RTRL, 16-OK, UORO, AVG and
16-KTP are in the papers' form: pushed at every step, the immediate derivative within the
estimate. In blocks of 8 steps the last one to eight steps are exact, and the influence is pushed
once in eight. TBPTT(L) is exact along the last L steps, with an update at every step.
""",
        (
            Figure("sequence_length", "T*", 1, rises=True),
            Figure("running_loss", "running loss, bits per character", 3),
        ),
        "TBPTT(25)",
        drawn=(
            "16-OK",
            "KF-RTRL",
            "UORO",
            "16-OK, blocks of 8",
            "KF-RTRL, blocks of 8",
            "TBPTT(25)",
            "TBPTT(5)",
            "TBPTT(1)",
        ),
    ),
    "ptb": Chapter(
        "Penn Treebank, characters",
        """
A recurrent highway network n = 256 predicts the next character; batch 32, Adam 10^-3.5, the
gradient of the cell clipped at norm 1, an update at every step, state and influence of a lane
reset every 100 characters. Methods are named as in the copy task.
""",
        (
            Figure("running_loss", "running training loss, bits per character", 3),
            Figure("valid_loss", "validation loss, bits per character", 3),
        ),
        "TBPTT(25)",
        drawn=(
            "8-OK, blocks of 8",
            "KF-RTRL, blocks of 8",
            "UORO, blocks of 8",
            "TBPTT(25)",
            "TBPTT(5)",
            "TBPTT(1)",
            "SnAp-1",
            "8-OK",
        ),
    ),
    "long": Chapter(
        "Dependencies longer than the window",
        """
An LSTM of 32 units whose forget gates start open, so that it has a memory of some 50 steps,
recalls a bit at the end of a chain of given length (memory_chain), or three symbols after a delay
(copy_fixed). Batch 16, Adam 10^-3 unless said, an update at every step. The score is the accuracy
over the last 800 steps; guessing has 0.5 on the chains and 0.125 on the symbols. TBPTT(8) is
exact along the same steps as the blocks of 8, without an influence beyond them.
""",
        (Figure("score", "accuracy", 2, rises=True),),
        "TBPTT(8)",
        by_task=True,
    ),
}
INTRODUCTION = f"""# Results

Made by `python -m experiments.report` from the records in
[experiments/results/{RECORDS}](experiments/results/{RECORDS}), which `python -m
experiments.reproduce --study=NAME` writes: every figure below is computed, none is typed. Figures
are means over seeds ± the standard deviation of a single run, with the number of seeds in
brackets; one seed has no spread. Differences are paired over seeds, with the 95 % confidence
interval of Student's t; where that includes zero no method is called better. Times are medians
over the run on machines that did other things beside it, so they compare methods roughly;
[docs/speed.md](docs/speed.md) has measured ratios. A run that is still short of its last step
says so. A seed that diverged has no figures after that, and is told beside the mean of the others.
"""


def load(results: Path) -> dict[str, Mapping[str, Any]]:
    """The records of all studies that have been run, by name.

    Args:
      results: the folder experiments/results.
    """
    paths = ((name, results / RECORDS / f"{name}.json") for name in CHAPTERS)
    return {name: records.read(path) for name, path in paths if path.exists()}


def render(results: Path) -> str:
    """RESULTS.md.

    Args:
      results: the folder experiments/results.
    """
    found = load(results)
    parts = [INTRODUCTION]
    for name, record in found.items():
        public = runs.of_public_logs(results / REFERENCE, name)
        parts.append(_chapter(CHAPTERS[name], record, runs.of_record(record), public))
    return "\n".join(parts)


def draw(results: Path, out: Path) -> list[Path]:
    """Draws a picture of each study that has curves, and gives their paths.

    Args:
      results: the folder experiments/results.
      out: the folder of the pictures.
    """
    paths = []
    for name, record in load(results).items():
        chapter, own = CHAPTERS[name], runs.of_record(record)
        if chapter.drawn and set(chapter.drawn) & set(runs.methods_of(own)):
            figure, public = chapter.figures[0], runs.of_public_logs(results / REFERENCE, name)
            paths.append(out / f"{name}.png")
            pictures.draw(paths[-1], own, public, figure.field, figure.words, chapter.drawn)
    return paths


def _chapter(
    chapter: Chapter, record: Mapping[str, Any], own: Sequence[Run], public: Sequence[Run]
) -> str:
    parts = [f"## {chapter.title}\n", f"{_markdown(chapter.protocol.strip())}\n"]
    if chapter.by_task:
        (figure,) = chapter.figures
        parts.append(f"↑ is above {chapter.baseline} beyond noise, ↓ below it:\n")
        parts.append(tables.by_task(own, figure.field, figure.digits, chapter.baseline))
        parts.append(f"Made with {'; '.join(made_with(record))}.\n")
        return "\n".join(parts)
    for figure in chapter.figures:
        words = figure.words[0].upper() + figure.words[1:]
        parts.append(f"{_markdown(words)}:\n")
        parts.append(tables.at_steps([*own, *public], figure.field, STEPS, figure.digits))
    first = chapter.figures[0]
    step = _last_common(own, first.field, chapter.baseline)
    compared = tables.differences(own, chapter.baseline, first.field, step, first.digits)
    if compared:
        parts.append(f"{_markdown(first.words)} after {step:,} steps, paired over seeds:\n")
        parts.append(compared)
    tested = tables.results(own)
    if tested:
        parts.append("With the parameters of the lowest validation loss, bits per character:\n")
        parts.append(tested)
    parts.append("What it costs, and how to make it:\n")
    parts.append(tables.costs(own))
    parts.append(f"Made with {'; '.join(made_with(record))}.\n")
    return "\n".join(parts)


def _last_common(own: Sequence[Run], field: str, baseline: str) -> int:
    """The last of the steps in tables that every seed of the baseline has come to; 0 for none."""
    series = [run.series.get(field, {}) for run in own if run.method == baseline]
    return max((s for s in STEPS if series and all(s in values for values in series)), default=0)


def _markdown(text: str) -> str:
    """Plain text in Markdown."""
    return text.replace("*", r"\*")


def made_with(record: Mapping[str, Any]) -> list[str]:
    """What a study was made with: versions, precision, and each sitting's commit and processor."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    sittings = [
        f"commit {s['commit'] or 'unknown'} on {s['processor']}, cores used: {s['cores']}"
        for s in record["sittings"]
    ]
    return [versions, record["settings"]["precision"], *sittings]
