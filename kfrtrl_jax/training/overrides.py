"""The trials of a sweep as lists of overrides: values of config fields by path."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

from kfrtrl_jax.errors import ConfigError

Overrides = dict[str, Any]

# So that a draw is the same on machines whose logarithms differ in the last bit.
_DIGITS = 4


def grid(**values: Iterable[Any]) -> list[Overrides]:
    """Every combination of the values of fields: grid(**{"optimizer.learning_rate": [1e-3, 1e-4]})."""
    return [dict(zip(values, point)) for point in itertools.product(*values.values())]


def seeds(count: int) -> list[Overrides]:
    """The seeds 0 to count - 1."""
    return [{"seed": seed} for seed in range(count)]


def log_uniform(path: str, low: float, high: float, count: int, seed: int = 0) -> list[Overrides]:
    """Values of a field whose logarithms are drawn uniformly, to four significant digits.

    A larger count gives the same first values, so that a sweep can be extended. Fields of other paths
    get other draws from the same seed.

    Args:
      path: of the field, such as "optimizer.learning_rate".
      low: the least value, positive.
      high: the largest value.
      count: how many.
      seed: another one gives other values.

    Raises:
      ConfigError: unless 0 < low < high and count >= 0.
    """
    if not 0 < low < high < math.inf:
        raise ConfigError(f"log_uniform of {path!r} needs 0 < low < high, got {low!r} and {high!r}")
    if count < 0:
        raise ConfigError(f"log_uniform of {path!r} needs a count of at least 0, got {count!r}")
    # Python promises the same numbers from the same text in all its versions.
    generator = random.Random(f"{path} {seed}")
    drawn = (low * (high / low) ** generator.random() for _ in range(count))
    return [{path: min(max(float(f"{value:.{_DIGITS}g}"), low), high)} for value in drawn]


def product(*sweeps: Sequence[Overrides]) -> list[Overrides]:
    """Every combination of overrides, one from each list; later ones win."""
    return [_joined(parts) for parts in itertools.product(*sweeps)]


def paired(*sweeps: Sequence[Overrides]) -> list[Overrides]:
    """The first overrides of all lists together, then the second, and so on; later ones win.

    For fields that vary together: paired(grid(segment_length=[1, 8]), grid(window=[5, 40])), or for
    random search in several fields: paired(log_uniform(...), log_uniform(...)).

    Raises:
      ConfigError: if the lists differ in length.
    """
    if len({len(sweep) for sweep in sweeps}) > 1:
        counts = ", ".join(str(len(sweep)) for sweep in sweeps)
        raise ConfigError(f"paired needs lists of the same length, got {counts} overrides")
    return [_joined(parts) for parts in zip(*sweeps)]


def _joined(parts: Iterable[Overrides]) -> Overrides:
    return {key: value for part in parts for key, value in part.items()}
