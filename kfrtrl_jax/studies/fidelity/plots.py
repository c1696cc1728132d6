"""Pictures of the certificate and of the theory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.lines
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kfrtrl_jax.studies.fidelity.certificate import LIMIT, CertificateRow
from kfrtrl_jax.studies.fidelity.theory import Theory
from kfrtrl_jax.training.plots import COLOURS, STYLE

_MARKERS = "osD^vP*X"
_DASHES = ["-", "--", ":", "-."]


def plot_certificate(rows: Sequence[CertificateRow], folder: Path) -> None:
    """Writes bias.png, cosine.png and cost.png."""
    if not rows:
        return
    rows = [
        r._replace(estimator=f"{r.estimator}, K = {r.segment_length}")
        if r.segment_length > 1
        else r
        for r in rows
    ]
    with mpl.rc_context(STYLE):
        _plot_dots(
            rows,
            folder / "bias.png",
            {
                "bias of the mean (standard errors)": _claimed_z,
                "relative noise": lambda r: r.relative_noise if r.relative_noise > 1e-12 else None,
                "cosine to the true gradient": lambda r: r.cosine,
            },
            linear=(0, 2),
            limit=LIMIT,
        )
        _plot_dots(
            rows,
            folder / "cost.png",
            {
                "memory of the state (bytes)": lambda r: r.state_bytes or None,
                "operations of a step": lambda r: r.flops_per_step or None,
                "time over that of KF-RTRL": lambda r: r.time_ratio,
            },
        )
        _plot_cosines(rows, folder / "cosine.png")


def plot_theory(theory: Theory, folder: Path) -> None:
    """Writes noise_width.png and noise_time.png."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 4.6), layout="constrained")
        axes = figure.subplots()
        for (name, fit), style in zip(theory.fits.items(), _line_styles()):
            if fit.slope is None:
                continue
            points = [row for row in theory.widths if row.estimator == name]
            n = [row.hidden_size for row in points]
            noise = [row.relative_noise for row in points]
            errors = [2 * row.standard_error for row in points]
            label = f"{name}: slope {fit.slope:.2f} ± {fit.standard_error:.2f}"
            label += f" (predicted {fit.predicted})" if fit.predicted is not None else ""
            axes.errorbar(n, noise, errors, label=label, marker="o", ms=5, capsize=3, **style)
            if fit.predicted is not None:
                guide = noise[0] * (np.asarray(n) / n[0]) ** fit.predicted
                axes.plot(n, guide, color=style["color"], lw=1, ls=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        n = sorted({row.hidden_size for row in theory.widths})
        axes.set_xticks(n, [str(value) for value in n])
        axes.set_xlabel("units n (dotted: predicted from the first point)")
        axes.set_ylabel("relative noise")
        axes.set_title(f"Noise against width\n{theory.cell}")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        figure.savefig(folder / "noise_width.png")

        figure = Figure(figsize=(9.5, 4.6), layout="constrained")
        axes = figure.subplots()
        for (name, curve), style in zip(theory.over_time.items(), _line_styles()):
            axes.plot(theory.times, curve, label=name, **{**style, "lw": 1})
        axes.set_yscale("log")
        axes.set_xlabel("time steps")
        axes.set_ylabel("relative noise")
        axes.set_title(f"Noise over time, n = {theory.time_width}\n{theory.cell}")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
        figure.savefig(folder / "noise_time.png")


def _plot_dots(
    rows: Sequence[CertificateRow],
    path: Path,
    fields: Mapping[str, Callable[[CertificateRow], float | None]],
    linear: Iterable[int] = (),
    limit: float | None = None,
) -> None:
    """A panel per field, a line per estimator, a marker per cell."""
    names = list(dict.fromkeys(row.estimator for row in rows))
    cells = list(dict.fromkeys(row.cell for row in rows))
    figure = Figure(figsize=(12, 1.6 + 0.27 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(fields), sharey=True)
    for i, (axes, (label, field)) in enumerate(zip(panels, fields.items())):
        empty = True
        for j, cell in enumerate(cells):
            places = [(names.index(r.estimator), field(r)) for r in rows if r.cell == cell]
            points = [(x, y) for y, x in places if x is not None]
            empty = empty and not points
            style: Any = {"marker": _MARKERS[j % 8], "color": COLOURS[j % 7], "s": 26}
            axes.scatter([x for x, _ in points], [y for _, y in points], label=cell, **style)
        # A panel without measurements, such as times in a run without timing, has no scale.
        if i not in linear and not empty:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axes.set_xlabel(label)
        axes.set_ylim(len(names) - 0.5, -0.5)
    panels[0].set_yticks(range(len(names)), names)
    if limit is not None:
        _verdicts(panels[0], rows, names, limit)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=8)
    figure.savefig(path)


def _claimed_z(row: CertificateRow) -> float | None:
    """The deviation in standard errors, clipped at the right of the panel, also if it is infinite."""
    if not row.claims_unbiased:
        return None
    return 2 * LIMIT if row.bias_z is None else min(row.bias_z, 2 * LIMIT)


def _verdicts(
    axes: Axes, rows: Sequence[CertificateRow], names: Sequence[str], limit: float
) -> None:
    """Draws the limit as a line, and a verdict beside every estimator."""
    axes.axvline(limit, color=COLOURS[1], lw=1.2)
    axes.set_xlim(-0.3, 2.6 * limit)
    for i, name in enumerate(names):
        verdicts = {row.unbiased for row in rows if row.estimator == name}
        word = (
            "no claim" if None in verdicts else "NOT unbiased" if False in verdicts else "unbiased"
        )
        colour = COLOURS[1] if False in verdicts else "0.35"
        axes.text(2.55 * limit, i, word, ha="right", va="center", fontsize=8, color=colour)


def _plot_cosines(rows: Sequence[CertificateRow], path: Path) -> None:
    """A panel per cell, a curve per estimator."""
    cells = list(dict.fromkeys(row.cell for row in rows))
    names = list(dict.fromkeys(row.estimator for row in rows))
    styles = dict(zip(names, _line_styles()))
    columns = min(3, len(cells) + 1)
    figure = Figure(
        figsize=(4.2 * columns, 3 * math.ceil((len(cells) + 1) / columns)), layout="constrained"
    )
    panels = list(
        np.ravel(figure.subplots(math.ceil((len(cells) + 1) / columns), columns, squeeze=False))
    )
    for cell, axes in zip(cells, panels):
        for row in (row for row in rows if row.cell == cell):
            axes.plot(row.times, row.cosine_over_time, **{**styles[row.estimator], "lw": 1.3})
        axes.set_title(cell)
        axes.set_ylim(top=1.03)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axes.set_xlabel("time steps")
    panels[0].set_ylabel("cosine to the true gradient")
    for axes in panels[len(cells) :]:
        axes.set_axis_off()
    lines = [mpl.lines.Line2D([], [], **styles[name]) for name in names]
    panels[len(cells)].legend(lines, names, fontsize=8, loc="center", ncols=1 + (len(names) > 12))
    figure.savefig(path)


def _line_styles() -> Iterable[dict[str, Any]]:
    return (
        {"color": COLOURS[i % len(COLOURS)], "ls": _DASHES[i // len(COLOURS) % len(_DASHES)]}
        for i in range(10**6)
    )
