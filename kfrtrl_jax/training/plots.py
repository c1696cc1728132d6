"""Learning curves as pictures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kfrtrl_jax.training.display import NAMELESS, Words, label_of
from kfrtrl_jax.training.metrics import Record
from kfrtrl_jax.training.spreads import spread

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
# Okabe and Ito's colours, which the colour-blind can tell apart, without their yellow, and a dark red.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#882255"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
# More curves are drawn in several panels, with those of the other panels in grey.
MOST_CURVES = len(COLOURS)
_GREY: Any = {"color": "0.85", "lw": 0.8, "zorder": 0.5}
_MARKERS_PER_CURVE = 8
_VALIDATION: Any = {"marker": "o", "ms": 4, "color": COLOURS[1], "label": "validation"}


def plot_run(
    records: Sequence[Record], path: Path, title: str = "", words: Words = NAMELESS
) -> None:
    """Plots one run: its loss, running loss and validation loss, its score, and T* if it has one."""
    with mpl.rc_context(STYLE):
        scored, curriculum = words.score is not None, _has(records, "sequence_length")
        figure, grid = _grid(1 + scored + curriculum, 1)
        top, *rest = grid[:, 0]
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
    means = {
        (label, field): _mean_and_range(runs, field)
        for label, runs in groups.items()
        for field in fields
    }
    # A setting whose runs diverged before their first record has no curve.
    drawn = [label for label in groups if any(means[label, field][0] for field in fields)]
    parts = _parts(drawn)
    with mpl.rc_context(STYLE):
        many = len(parts) > 1
        figure, grid = _grid(len(parts), len(fields), "col") if many else _grid(len(fields), 1)
        for part, row in zip(parts, grid if many else grid.T):
            for field, axes in zip(fields, row):
                for label in drawn:
                    steps, mean, *spread = means[label, field]
                    if label not in part:
                        axes.plot(steps, mean, **_GREY)
                        continue
                    style = _style(part.index(label))
                    every = max(1, len(steps) // _MARKERS_PER_CURVE)
                    # Not all at the same steps, so that close curves can be told apart.
                    marked = (every * part.index(label) // len(part), every)
                    axes.plot(steps, mean, label=label, ms=6, markevery=marked, **style)
                    if len(groups[label]) > 1:
                        axes.fill_between(steps, *spread, color=style["color"], alpha=0.15, lw=0)
                axes.set_ylabel(label_of(field, words))
                if field == "sequence_length":
                    axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
                elif field.endswith("loss"):
                    _log_if_wide(axes, [mean[-1] for _, mean, *_ in means.values() if mean])
            _legend(row[0], len(drawn))
        _finish(figure, list(grid.flat), path, title)


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
    parts = _parts(list(lines))
    values = sorted({value for points in lines.values() for value in points})
    with mpl.rc_context(STYLE):
        columns = min(len(parts), 2)
        figure, grid = _grid(-(-len(parts) // columns), columns, "all")
        for part, axes in zip(parts, grid.flat):
            for label, points in lines.items():
                x = sorted(points)
                mean = [np.mean(points[value]) for value in x]
                if label not in part:
                    axes.plot(x, mean, **_GREY)
                    continue
                # One seed has no deviation, which is NaN and draws no bar.
                deviations = [spread(points[value]).deviation for value in x]
                style = _style(part.index(label))
                axes.errorbar(x, mean, deviations, label=label, ms=5, capsize=3, **style)
            if values[0] > 0 and values[-1] > 4 * values[0]:
                axes.set_xscale("log")
            if len(values) <= 8 and all(b > 1.4 * a for a, b in itertools.pairwise(values)):
                axes.set_xticks(values, [f"{value:.3g}" for value in values])
                axes.set_xticks([], minor=True)
            axes.set_ylabel(y_label)
            _log_if_wide(axes, [np.mean(v) for points in lines.values() for v in points.values()])
            _legend(axes, len(lines))
        for axes in grid.flat[len(parts) :]:
            axes.set_axis_off()
        _finish(figure, list(grid.flat), path, title, x_label)


def _parts(labels: Sequence[str]) -> list[list[str]]:
    """Labels in as few panels as can hold them, about as many in each."""
    count = -(-len(labels) // MOST_CURVES)
    return [list(part) for part in np.array_split(np.array(labels, object), max(1, count))]


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number], "marker": MARKERS[number]}


def _grid(
    rows: int, columns: int, share_y: Literal["none", "col", "all"] = "none"
) -> tuple[Figure, Any]:
    """A figure and its panels [rows, columns]; those that have the same y-axis."""
    width = 7.5 if columns == 1 else 5.5 * columns
    figure = Figure(figsize=(width, 1.4 + 2.8 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, sharex=True, sharey=share_y, squeeze=False)


def _log_if_wide(axes: Axes, values: Sequence[Any]) -> None:
    """A logarithmic axis where one value would press all others to the ground."""
    if values and min(values) > 0 and max(values) > 20 * np.median(values):
        axes.set_yscale("log")


def _finish(
    figure: Figure, panels: list[Axes], path: Path, title: str, x_label: str = "time steps"
) -> None:
    if title:
        panels[0].set_title(title)
    figure.supxlabel(x_label, fontsize="medium")
    if x_label == "time steps":
        panels[-1].xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda x, _: f"{x:,.0f}"))
    figure.savefig(path)


def _has(records: Sequence[Record], field: str) -> bool:
    return any(record.get(field) is not None for record in records)


def _series(records: Sequence[Record], field: str) -> tuple[list[int], list[float]]:
    points = [(r["step"], r[field]) for r in records if r.get(field) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _mean_and_range(
    runs: Sequence[Sequence[Record]], field: str
) -> tuple[list[int], list[float], list[float], list[float]]:
    """The steps at which runs have a field, its mean over runs, its least and its largest value."""
    values: dict[int, list[float]] = {}
    for records in runs:
        for step, value in zip(*_series(records, field)):
            values.setdefault(step, []).append(value)
    steps = sorted(values)
    found = [(float(np.mean(values[s])), min(values[s]), max(values[s])) for s in steps]
    mean, low, high = ([row[i] for row in found] for i in range(3))
    return steps, mean, low, high


def _legend(axes: Axes, count: int) -> None:
    if count > 1:
        axes.legend(fontsize=8)
