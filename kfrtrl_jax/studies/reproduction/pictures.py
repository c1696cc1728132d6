"""Pictures of studies for other pages.

The first figure against time steps and against time; or, of a study of many tasks, by method and task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kfrtrl_jax.studies.reproduction import chapters, tables
from kfrtrl_jax.studies.reproduction.runs import Run, by_method, methods_of, without_lanes
from kfrtrl_jax.training import plots


def draw(
    path: Path,
    own: Sequence[Run],
    public: Sequence[Run],
    of: chapters.Figure,
    methods: Sequence[str],
) -> None:
    """Draws the mean over seeds of each method, and the public logs as grey dashes.

    Seeds that have come further than all of their method go on as thin lines. A method whose time is
    not known is drawn against time steps alone.

    Args:
      path: of the picture.
      own: our runs, of these methods.
      public: those of others, drawn as far as ours go.
      of: the figure.
      methods: in the order of their colours, at most as many as there are.
    """
    end = max(run.steps for run in own) / 1000
    with mpl.rc_context(plots.STYLE):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        by_step, by_time = figure.subplots(1, 2, sharey=True)
        for runs, dashes in zip(by_method(public).values(), ("--", ":", "-."), strict=False):
            x, y = mean(runs, of.field, _thousands)
            reached = sum(step <= end for step in x)
            label = runs[0].method
            by_step.plot(x[:reached], y[:reached], dashes, color="0.6", marker=".", label=label)
        found = by_method(own)
        for name, colour in zip(methods, plots.COLOURS, strict=False):
            if name not in found:
                continue
            timed = all(run.series.get("wall_time") for run in found[name])
            for axes, place in ((by_step, _thousands), *([(by_time, _minutes)] if timed else [])):
                axes.plot(*mean(found[name], of.field, place), color=colour, label=name)
                for x, y in further(found[name], of.field, place):
                    axes.plot(x, y, color=colour, linewidth=0.8)
        by_step.set_ylabel(of.axis or of.words)
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
    steps = _common(runs, field)
    x = [float(np.mean([place(run, step) for run in runs])) for step in steps]
    y = [float(np.mean([run.series[field][step] for run in runs])) for step in steps]
    return x, y


def further(
    runs: Sequence[Run], field: str, place: Callable[[Run, int], float]
) -> list[tuple[list[float], list[float]]]:
    """The curves of single runs from the last step that all have."""
    last = max(_common(runs, field), default=0)
    curves = []
    for run in runs:
        steps = sorted(step for step in run.series.get(field, {}) if step >= last)
        if len(steps) > 1:
            curves.append(([place(run, s) for s in steps], [run.series[field][s] for s in steps]))
    return curves


def _common(runs: Sequence[Run], field: str) -> list[int]:
    """The steps that all runs have."""
    return sorted(set.intersection(*(set(run.series.get(field, {})) for run in runs)))
