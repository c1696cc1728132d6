"""Pictures of studies for other pages: the first figure against time steps and against time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kfrtrl_jax.studies.reproduction.runs import Run, methods_of
from kfrtrl_jax.training import plots


def draw(
    path: Path,
    own: Sequence[Run],
    public: Sequence[Run],
    field: str,
    words: str,
    methods: Sequence[str],
) -> None:
    """Draws the mean over seeds of chosen methods, and the public logs as grey dashes.

    Args:
      path: of the picture.
      own: our runs, of which those that diverged are left out.
      public: those of others, drawn as far as ours go.
      field: of the figure.
      words: what it is.
      methods: at most as many as there are colours; those without runs are left out.
    """
    own = [run for run in own if run.status != "diverged"]
    known = [method for method in methods if method in methods_of(own)]
    end = max(run.steps for run in own if run.method in known)
    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        by_step, by_time = figure.subplots(1, 2, sharey=True)
        for name, dashes in zip(methods_of(public), ("--", ":", "-."), strict=False):
            runs = [run for run in public if run.method == name]
            x, y = mean(runs, field, _thousands)
            count = sum(step <= end / 1000 for step in x)
            by_step.plot(x[:count], y[:count], dashes, color="0.6", marker=".", label=name)
        for number, name in enumerate(known):
            runs = [run for run in own if run.method == name]
            style: Any = {"color": plots.COLOURS[number], "label": name}
            by_step.plot(*mean(runs, field, _thousands), **style)
            by_time.plot(*mean(runs, field, _minutes), **style)
        by_step.set_ylabel(words)
        by_step.set_xlabel("thousand time steps")
        by_time.set_xlabel("minutes")
        by_time.set_xscale("log")
        by_time.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
        _legend(figure, by_step)
        figure.savefig(path)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9)


def _thousands(run: Run, step: int) -> float:
    del run
    return step / 1000


def _minutes(run: Run, step: int) -> float:
    return run.series["wall_time"][step] / 60


def mean(
    runs: Sequence[Run], field: str, place: Callable[[Run, int], float]
) -> tuple[list[float], list[float]]:
    """The mean curve, at the steps that all runs have."""
    steps = sorted(set.intersection(*(set(run.series.get(field, {})) for run in runs)))
    x = [float(np.mean([place(run, step) for run in runs])) for step in steps]
    y = [float(np.mean([run.series[field][step] for run in runs])) for step in steps]
    return x, y
