"""The time of a step against width, lanes and OK's rank, beside the power laws of the theory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.ticker
from matplotlib.figure import Figure

from kfrtrl_jax.studies import power_law
from kfrtrl_jax.studies.benchmarking import steps
from kfrtrl_jax.studies.benchmarking.steps import Case
from kfrtrl_jax.studies.benchmarking.timing import Measurement


class Series(NamedTuple):
    """Cases that differ in one size.

    Attributes:
      name: the estimator and the fixed sizes.
      variable: "n", "batch" or "rank".
      predicted: the exponent of the step's work in that size, in the limit of large sizes.
      cases: by size.
    """

    name: str
    variable: str
    predicted: float
    cases: Mapping[int, Case]


class PowerLaw(NamedTuple):
    """A power law through measured times.

    Attributes:
      name: of the series.
      variable: the size that was varied.
      predicted: the exponent of the work.
      exponent: of the time of a step, over all sizes.
      exponent_large: over the larger half of the sizes, where constant costs matter less.
      floor_exponent: of the time of the bare product, over all sizes.
      sizes: of the points.
      seconds: of a step at each size.
      floor_seconds: of the bare product at each size.
    """

    name: str
    variable: str
    predicted: float
    exponent: float
    exponent_large: float
    floor_exponent: float
    sizes: list[int]
    seconds: list[float]
    floor_seconds: list[float]


def _cases(estimator: str, sizes: Sequence[int], make: Callable[[int], dict[str, Any]]) -> Any:
    return {size: Case("recurrent_highway", estimator, **make(size)) for size in sizes}


SCALING_SUITE = (
    Series(
        "kf_rtrl, batch 16",
        "n",
        3,
        _cases("kf_rtrl", (32, 64, 128, 256, 512), lambda n: {"n": n, "batch": 16}),
    ),
    Series(
        "kf_rtrl, n 128",
        "batch",
        1,
        _cases("kf_rtrl", (1, 2, 4, 8, 16, 32, 64), lambda batch: {"n": 128, "batch": batch}),
    ),
    Series(
        "ok, n 64, batch 8",
        "rank",
        1,
        _cases(
            "ok",
            (1, 2, 4, 8, 16, 32),
            lambda rank: {"n": 64, "batch": 8, "arguments": {"rank": rank}},
        ),
    ),
)


def measure_scaling(
    series: Series, config: Any, *, suite: str, rounds: int = 9, steps_each: int | None = None
) -> tuple[list[Measurement], PowerLaw]:
    """Measures every case of a series against its product, and fits the power law."""
    rows = [
        steps.measure_step(case, config, suite=suite, rounds=rounds, steps=steps_each)
        for case in series.cases.values()
    ]
    return rows, fit(series, rows)


def fit(series: Series, rows: Sequence[Measurement]) -> PowerLaw:
    """The power law of a measured series."""
    sizes = list(series.cases)
    seconds = [row.seconds or math.nan for row in rows]
    floors = [row.floor_seconds or math.nan for row in rows]
    half = len(sizes) // 2
    return PowerLaw(
        series.name,
        series.variable,
        series.predicted,
        power_law.exponent(sizes, seconds)[0],
        power_law.exponent(sizes[half:], seconds[half:])[0],
        power_law.exponent(sizes, floors)[0],
        sizes,
        seconds,
        floors,
    )


def plot(fits: Sequence[PowerLaw], path: Path) -> None:
    """Plots a panel per series: step, product, and the theory's line through the last point."""
    figure = Figure(figsize=(3.6 * len(fits), 3.4), layout="constrained")
    for axes, series in zip(figure.subplots(1, len(fits), squeeze=False)[0], fits):
        largest = series.sizes[-1]
        law = [
            series.seconds[-1] * (size / largest) ** series.predicted * 1e3 for size in series.sizes
        ]
        axes.loglog(series.sizes, law, "--", color="0.6", label=f"power {series.predicted:g}")
        for values, slope, name, colour in (
            (series.seconds, series.exponent, "step", "#0072B2"),
            (series.floor_seconds, series.floor_exponent, "product alone", "#D55E00"),
        ):
            milliseconds = [1e3 * value for value in values]
            label = f"{name}, {slope:.2f}"
            axes.loglog(series.sizes, milliseconds, "o-", color=colour, ms=4, label=label)
        axes.set_title(series.name, loc="left", fontsize=10)
        axes.set_xlabel(series.variable)
        axes.set_ylabel("ms per time step")
        axes.set_xticks(series.sizes, [str(size) for size in series.sizes])
        axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
