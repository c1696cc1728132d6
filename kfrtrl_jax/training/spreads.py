"""A figure over seeds: its mean, how far single runs are from it, and of how many it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """A figure over seeds.

    Attributes:
      mean: over those runs that have it; NaN for none.
      deviation: the standard deviation of single runs, estimated from these (ddof = 1); NaN for one.
      runs: their number.
    """

    mean: float
    deviation: float
    runs: int

    def text(self, digits: int) -> str:
        """In words, such as 2.09 ± 0.01 (5); "" for no run."""
        form = f".{digits}f"
        return f"{self.formatted(form, form)} ({self.runs})" if self.runs else ""

    def formatted(self, mean: str, deviation: str) -> str:
        """Without the number of runs, in these formats; a single run has no deviation."""
        spread = f" ± {self.deviation:{deviation}}" if self.runs > 1 else ""
        return f"{self.mean:{mean}}{spread}"


def spread(values: Sequence[float]) -> Spread:
    """The mean and the standard deviation of values."""
    if not values:
        return Spread(math.nan, math.nan, 0)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Spread(float(np.mean(values)), deviation, len(values))
