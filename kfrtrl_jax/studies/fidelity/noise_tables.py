"""Tables of the noise of gradients: by form, over time and, of several networks, against width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kfrtrl_jax._src.markdown import table
from kfrtrl_jax.studies import power_law
from kfrtrl_jax.studies.fidelity.gradient_noise import Noise

# Relative noise below this is that of rounding, and has no exponent.
_ROUNDING = 1e-9


def markdown(rows: Sequence[Noise], names: Mapping[str, str] | None = None) -> str:
    """Tables of the noise and the cosine, by estimator and form, and of the noise over time, if kept.

    Of networks of several widths there is a column for each in place of each form, and the exponent of
    n in the noise.

    Args:
      rows: of each estimator in each form.
      names: of estimators, where they are to be called otherwise.
    """
    named = [
        row._replace(estimator=(names or {}).get(row.estimator, row.estimator)) for row in rows
    ]
    if len({row.width for row in rows}) > 1:
        return _against_width(named)
    return "\n".join([*_by_form(named), *_over_time(named)])


def _by_form(rows: Sequence[Noise]) -> list[str]:
    forms = list(dict.fromkeys(_form(row) for row in rows))

    def of(title: str, shown: Callable[[Noise], str]) -> str:
        lines = []
        for name in dict.fromkeys(row.estimator for row in rows):
            own = {_form(row): row for row in rows if row.estimator == name}
            lines.append([name, *(shown(own[form]) for form in forms)])
        return table([title, *forms], lines)

    return [of("noise", _noise), of("cosine", _cosine)]


def _over_time(rows: Sequence[Noise]) -> list[str]:
    """A table of the noise in quarters of the steps, a line per estimator and form; [] if not kept."""
    kept = [row for row in rows if row.over_time]
    head = ["noise in the", *(f"{place} quarter" for place in ("first", "second", "third", "last"))]
    lines = [[_line(row), *(f"{noise:.3g}" for noise in row.over_time)] for row in kept]
    return [table(head, lines)] if kept else []


def _against_width(rows: Sequence[Noise]) -> str:
    widths = sorted({row.width for row in rows})
    columns = [f"n = {n}" for n in widths]
    noise, cosine = [], []
    for line in dict.fromkeys(_line(row) for row in rows):
        own = {row.width: row for row in rows if _line(row) == line}
        found = [own[n] for n in widths]
        noise.append([line, *map(_noise, found), _exponent(widths, found)])
        cosine.append([line, *map(_cosine, found)])
    return "\n".join(
        [table(["noise", *columns, "exponent of n"], noise), table(["cosine", *columns], cosine)]
    )


def _exponent(widths: Sequence[int], found: Sequence[Noise]) -> str:
    noises = [row.relative_noise for row in found]
    if min(noises) < _ROUNDING:
        return ""
    return "{:.2f} ± {:.2f}".format(*power_law.exponent(widths, noises))


def _noise(row: Noise) -> str:
    return f"{row.relative_noise:.3g} ± {row.standard_error:.1g}"


def _cosine(row: Noise) -> str:
    return f"{row.cosine:.3g} ± {row.cosine_error:.1g}"


def _line(row: Noise) -> str:
    return f"{row.estimator}, {_form(row)}"


def _form(row: Noise) -> str:
    return f"K = {row.segment_length}" if row.immediate == "exact" else "papers' form"
