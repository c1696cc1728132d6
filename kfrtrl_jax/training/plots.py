"""Learning curves as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kfrtrl_jax.training.display import NAMELESS, Words
from kfrtrl_jax.training.metrics import Record

LABELS = {
    "running_loss": "running loss",
    "sequence_length": "sequence length T*",
    "valid_loss": "validation loss",
    "valid_score": "validation score",
}

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.4",
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 150,
}
# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
_VALIDATION: Any = {"marker": "o", "ms": 4, "color": COLOURS[1], "label": "validation"}


def label_of(field: str, words: Words = NAMELESS) -> str:
    """The name of a record's field in words, with the unit of losses and the name of scores."""
    name = LABELS.get(field, field.replace("_", " "))
    if words.score and field.endswith("score"):
        return name.replace("score", words.score)
    return f"{name} ({words.unit})" if words.unit and field.endswith("loss") else name


def plot_run(
    records: Sequence[Record], path: Path, title: str = "", words: Words = NAMELESS
) -> None:
    """Plots one run: its loss, running loss and validation loss, its score, and T* if it has one."""
    with mpl.rc_context(STYLE):
        scored, curriculum = words.score is not None, _has(records, "sequence_length")
        figure, (top, *rest) = _panels(1 + scored + curriculum)
        top.plot(*_series(records, "loss"), color=COLOURS[0], alpha=0.3, lw=1, label="loss")
        top.plot(*_series(records, "running_loss"), color=COLOURS[0], label="running average")
        if _has(records, "valid_loss"):
            top.plot(*_series(records, "valid_loss"), **_VALIDATION)
        top.set_ylabel(words.unit)
        top.set_ylim(bottom=0)
        top.legend()
        if scored:
            rest[0].plot(*_series(records, "score"), color=COLOURS[0])
            if _has(records, "valid_score"):
                rest[0].plot(*_series(records, "valid_score"), **_VALIDATION)
            rest[0].set_ylabel(str(words.score))
        for axes in rest[scored:]:
            steps, lengths = _series(records, "sequence_length")
            axes.step(steps, lengths, where="post", color=COLOURS[2])
            axes.set_ylabel(label_of("sequence_length"))
            axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        _finish(figure, [top, *rest], path, title)


def plot_groups(
    groups: Mapping[str, Sequence[Sequence[Record]]],
    path: Path,
    fields: Sequence[str] = ("running_loss",),
    title: str = "",
    words: Words = NAMELESS,
) -> None:
    """Plots groups of runs, such as seeds, in one figure: the mean and the range of each group.

    Args:
      groups: the records of each run, by the group's name.
      path: of the picture.
      fields: of the records, one panel each ("running_loss", "sequence_length", "valid_loss").
      title: above it.
      words: what losses and scores are called.
    """
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(fields))
        for axes, field in zip(panels, fields):
            for (label, runs), colour in zip(groups.items(), _colours(len(groups))):
                _draw_group(axes, runs, field, label, colour)
            axes.set_ylabel(label_of(field, words))
            if field == "sequence_length":
                axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        _legend(panels[0], len(groups))
        _finish(figure, panels, path, title)


def plot_response(
    lines: Mapping[str, Mapping[float, Sequence[float]]],
    path: Path,
    x_label: str,
    y_label: str,
    title: str = "",
) -> None:
    """Plots an outcome against a hyper-parameter: mean and standard deviation over seeds.

    Args:
      lines: for every label, the outcomes at every value of the hyper-parameter.
      path: of the picture.
      x_label: the hyper-parameter.
      y_label: the outcome.
      title: above it.
    """
    with mpl.rc_context(STYLE):
        figure, (axes,) = _panels(1)
        for (label, points), colour in zip(lines.items(), _colours(len(lines))):
            x = sorted(points)
            mean = [np.mean(points[value]) for value in x]
            spread = [np.std(points[value]) for value in x]
            axes.errorbar(x, mean, spread, color=colour, label=label, marker="o", ms=5, capsize=3)
        values = sorted({value for points in lines.values() for value in points})
        if values[0] > 0 and values[-1] > 4 * values[0]:
            axes.set_xscale("log")
        if len(values) <= 8:
            axes.set_xticks(values, [f"{value:.3g}" for value in values])
            axes.set_xticks([], minor=True)
        axes.set_ylabel(y_label)
        _legend(axes, len(lines))
        _finish(figure, [axes], path, title, x_label)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(7.5, 1.4 + 2.8 * count), layout="constrained")
    grid = figure.subplots(count, 1, sharex=True, squeeze=False)
    return figure, list(grid[:, 0])


def _finish(
    figure: Figure, panels: list[Axes], path: Path, title: str, x_label: str = "time steps"
) -> None:
    panels[0].set_title(title)
    panels[-1].set_xlabel(x_label)
    if x_label == "time steps":
        panels[-1].xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda x, _: f"{x:,.0f}"))
    figure.savefig(path)


def _has(records: Sequence[Record], field: str) -> bool:
    return any(record.get(field) is not None for record in records)


def _series(records: Sequence[Record], field: str) -> tuple[list[int], list[float]]:
    points = [(r["step"], r[field]) for r in records if r.get(field) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _draw_group(
    axes: Axes, runs: Sequence[Sequence[Record]], field: str, label: str, colour: Any
) -> None:
    values: dict[int, list[float]] = {}
    for records in runs:
        for step, value in zip(*_series(records, field)):
            values.setdefault(step, []).append(value)
    steps = sorted(values)
    style: Any = {"marker": "o", "ms": 4} if field == "valid_loss" else {}
    axes.plot(steps, [np.mean(values[s]) for s in steps], color=colour, label=label, **style)
    if len(runs) > 1:
        low, high = [min(values[s]) for s in steps], [max(values[s]) for s in steps]
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)


def _colours(count: int) -> Sequence[Any]:
    if count <= len(COLOURS):
        return COLOURS
    return list(mpl.colormaps["viridis"](np.linspace(0, 0.92, count)))


def _legend(axes: Axes, count: int) -> None:
    if count > 8:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7)
    elif count > 1:
        axes.legend(fontsize=9)
