"""How close a method's gradients are to those of exact RTRL, where that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kfrtrl_jax.studies.reproduction.results import Results
from kfrtrl_jax.studies.reproduction.runs import Run

# An estimator as text, K and the immediate term.
Way = tuple[str, int, str]


class Cosines(NamedTuple):
    """The measured cosines by estimator, K and immediate term.

    Attributes:
      trained: along a network of the study's own config.
      untrained: of each certified cell, by its name.
    """

    trained: Mapping[Way, float]
    untrained: Mapping[str, Mapping[Way, float]]


def of_study(results: Results, study: str) -> Cosines:
    """The cosines that are known of a study.

    A certificate that names no K is of K = 1, and gives way to one that does; the immediate derivative
    is exact in all of them. Truncation estimates no influence, and has none.

    Args:
      results: with the certificates and the noise.
      study: its name.
    """
    untrained: dict[str, dict[Way, float]] = {}
    for row in results.certificates:
        own = untrained.setdefault(row["cell"], {})
        own[row["estimator"], row.get("segment_length", 1), "exact"] = row["cosine"]
    rows = results.noises[study]["rows"] if study in results.noises else ()
    trained = {(r["estimator"], r["segment_length"], r["immediate"]): r["cosine"] for r in rows}
    return Cosines(
        _without_truncation(trained),
        {cell: _without_truncation(own) for cell, own in untrained.items()},
    )


def of(run: Run, cosines: Cosines) -> dict[str, Any] | None:
    """The cosine of a run's gradients, and along what; None if it has not been measured.

    That along the study's network says nothing of runs that override its cell.
    """
    length = run.overrides.get("segment_length", 1)
    way = (str(run.overrides.get("estimator")), length, run.overrides.get("immediate", "exact"))
    has_own_cell = any(field.partition(".")[0] == "cell" for field in run.overrides)
    if not has_own_cell and way in cosines.trained:
        return {
            "value": cosines.trained[way],
            "along": "a network trained on this task",
            "K": length,
        }
    value = cosines.untrained.get(run.cell, {}).get(way)
    if value is None:
        return None
    return {"value": value, "along": f"a small untrained {run.cell}", "K": length}


def _without_truncation(own: Mapping[Way, float]) -> dict[Way, float]:
    return {way: cosine for way, cosine in own.items() if way[0] != "truncated"}
