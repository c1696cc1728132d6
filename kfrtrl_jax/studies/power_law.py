"""The exponent of a power law through measured points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def exponent(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The slope of a least-squares line through the points' logarithms, and its standard error.

    The error is by the points' distances to the line, and 0 for two points.

    Args:
      sizes: at least two different ones, positive.
      values: at each of them, positive; if one is NaN the slope is.

    Raises:
      ValueError: for fewer than two different sizes.
    """
    if len(set(sizes)) < 2:
        raise ValueError(f"an exponent needs at least two different sizes, got {list(sizes)}")
    x, y = np.log(sizes), np.log(values)
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    rest = float(np.sum((y - slope * x) ** 2)) / max(len(x) - 2, 1)
    return slope, math.sqrt(rest / float(x @ x))
