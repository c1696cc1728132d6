"""Numbers within bounds, which are intervals as in mathematics: "[0, 1)" holds 0 and not 1."""

from __future__ import annotations

import math
from typing import Any

from kfrtrl_jax._src import jax_internals


def missed(interval: str, value: float) -> str | None:
    """What is allowed, in words, if a number is not in an interval; None if it is. NaN is in none."""
    low, high = ends(interval)
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if above and below:
        return None
    if high < math.inf:
        return f"in {interval}"
    if low == -math.inf or value == math.inf:
        return "finite"
    return f"at least {low:g}" if interval[0] == "[" else f"more than {low:g}"


def ends(interval: str) -> tuple[float, float]:
    """The least and the largest number of an interval, or the bounds that it does not reach."""
    low, high = map(float, interval[1:-1].split(","))
    return low, high


def require(interval: str, **values: Any) -> None:
    """Refuses numbers outside of an interval; those that a sweep traces are not known, and pass.

    Raises:
      ValueError: naming the first of them.
    """
    for name, value in values.items():
        if not jax_internals.is_traced(value) and (allowed := missed(interval, value)):
            raise ValueError(f"{name} must be {allowed}, got {value}")
