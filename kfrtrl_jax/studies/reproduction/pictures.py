"""Pictures of studies for other pages.

The first figure against time steps and against time; or, of a study of many tasks, by method and task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kfrtrl_jax.studies.reproduction import chapters, tables
from kfrtrl_jax.studies.reproduction.runs import Run, methods_of, without_lanes
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


def draw_tasks(
    path: Path, own: Sequence[Run], of: chapters.Figure, guessing: Mapping[str, float]
) -> None:
    """Draws a table of methods and tasks, darker the further a figure is from guessing to 1.

    Args:
      path: of the picture.
      own: our runs, of which those that are finished are drawn.
      of: the figure, at most 1.
      guessing: that of one who guesses, by the name of the task without arguments.
    """
    done = tables.finished(own)
    methods, tasks = methods_of(done), list(dict.fromkeys(run.task for run in done))
    with mpl.rc_context({**plots.STYLE, "axes.grid": False}):
        figure = Figure(
            figsize=(2.6 + 1.45 * len(tasks), 1 + 0.3 * len(methods)), layout="constrained"
        )
        axes = figure.subplots()
        shades = np.full((len(methods), len(tasks)), np.nan)
        for row, method in enumerate(methods):
            for column, task in enumerate(tasks):
                runs = [run for run in done if run.method == method and run.task == task]
                value = tables.last(runs, of.field)
                if value.runs:
                    chance = guessing.get(chapters.base(task), 0.0)
                    shades[row, column] = (value.mean - chance) / (1 - chance)
                dark = shades[row, column] > 0.6
                text = value.text(of.digits) + tables.diverged(runs)
                axes.text(
                    column, row, text, ha="center", va="center", color="w" if dark else "k", size=9
                )
        axes.imshow(shades, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
        axes.set_yticks(range(len(methods)), methods)
        axes.set_xticks(range(len(tasks)), [_two_lines(task) for task in tasks])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        note = (
            f"{of.words}, mean ± standard deviation (seeds)\nwhite is guessing; blank was not run"
        )
        figure.supxlabel(note, fontsize=9)
        figure.savefig(path)


def _two_lines(task: str) -> str:
    """memory_chain(length=16) as its name and what differs: memory chain / length 16."""
    name, _, arguments = without_lanes(task).partition("(")
    return f"{name}\n{arguments.rstrip(')').replace('=', ' ')}".replace("_", " ")


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
