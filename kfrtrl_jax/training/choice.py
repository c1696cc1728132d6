"""Which setting of a sweep did best, by its mean over seeds, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Results = Sequence[Mapping[str, Any]]


class Measure(NamedTuple):
    """The figure that settings are compared by.

    Attributes:
      key: of the results.
      higher_is_better: whether a higher one is.
    """

    key: str
    higher_is_better: bool = False


class Choice(NamedTuple):
    """The best of some settings.

    Attributes:
      setting: its label.
      mean: of the figure over its seeds.
      close: the number of other settings whose mean is within one standard error of the difference;
        None if a setting has one seed only, which has no standard error.
      compared: the number of settings that were compared.
      diverged: the number of settings that were not, as some of their trials diverged.
      without: the number of the others that were not, as some of their trials have no such figure.
    """

    setting: str
    mean: float
    close: int | None
    compared: int
    diverged: int
    without: int


def is_steady(result: Mapping[str, Any]) -> bool:
    """Whether the numbers of a trial have stayed finite."""
    return "diverged_at" not in result


def figures(results: Results, key: str) -> list[float]:
    """A figure of those trials that did not diverge."""
    return [r[key] for r in results if r.get(key) is not None and is_steady(r)]


def measure_of(results: Results) -> Measure:
    """The lowest validation loss if there is one, else the task's score, else the running loss.

    The test loss is not among them: it would no longer be that of data which chose nothing.
    """
    if any(result.get("best_valid_loss") is not None for result in results):
        return Measure("best_valid_loss")
    scored = [result for result in results if "score_name" in result]
    if scored:
        return Measure("score", scored[0].get("higher_is_better", True))
    return Measure("running_loss")


def choose(settings: Mapping[str, Results], measure: Measure) -> Choice | None:
    """The best setting; None if no trial has finished.

    Settings of which a trial diverged or has no such figure are left out, unless there are no others:
    their means are those of the other seeds.

    Args:
      settings: the results of each one's trials, by its label.
      measure: what they are compared by.
    """
    values = {label: figures(results, measure.key) for label, results in settings.items()}
    values = {label: own for label, own in values.items() if own}
    steady = {label: own for label, own in values.items() if len(own) == len(settings[label])}
    compared = steady or values
    if not compared:
        return None
    sign = -1 if measure.higher_is_better else 1
    best = min(compared, key=lambda label: sign * float(np.mean(compared[label])))
    close: int | None = None
    if len(compared) > 1 and all(len(own) > 1 for own in compared.values()):
        others = (own for label, own in compared.items() if label != best)
        close = sum(_is_close(compared[best], own) for own in others)
    mean = float(np.mean(compared[best]))
    left_out = [own for label, own in settings.items() if label not in compared]
    diverged = sum(not all(map(is_steady, own)) for own in left_out)
    return Choice(best, mean, close, len(compared), diverged, len(left_out) - diverged)


def _is_close(best: Sequence[float], other: Sequence[float]) -> bool:
    error = math.hypot(*(np.std(own, ddof=1) / math.sqrt(len(own)) for own in (best, other)))
    return bool(abs(np.mean(best) - np.mean(other)) <= error)


def in_words(choice: Choice, name: str) -> str:
    """A choice as a line.

    Args:
      choice: the best setting.
      name: of the figure.
    """
    line = f"best by {name}: {choice.setting} ({choice.mean:.4g})"
    if choice.close is not None:
        others = f"{choice.close} of {choice.compared - 1} others"
        line += f"; {others} within one standard error of the difference"
    elif choice.compared > 1:
        line += "; one seed has no standard error"
    if choice.diverged:
        line += f"; {choice.diverged} left out, as trials of theirs diverged"
    if choice.without:
        line += f"; {choice.without} left out, as trials of theirs have no such figure"
    return line
