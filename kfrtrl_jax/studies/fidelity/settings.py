"""Checks of the flat configs of these experiments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from kfrtrl_jax._src.compositions.notation import Written
from kfrtrl_jax.base import Cell
from kfrtrl_jax.cells import CELLS
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training.command_line import Invocation

# Least values other than 1; a standard deviation needs two draws.
_LEAST = {"seed": 0, "timing_rounds": 0, "init_scale": 0, "draws": 2}


def checked(invocation: Invocation, defaults: ConfigDict) -> dict[str, Any]:
    """The given config, completed by defaults, after a check against the fields and types of these.

    Args:
      invocation: the config and its overrides.
      defaults: the fields, with a value each.

    Raises:
      ConfigError: naming the field that is unknown or has a wrong type or value.
    """
    settings = {**defaults.to_dict(), **dict(invocation.config.items()), **invocation.overrides}
    for key, value in settings.items():
        if key not in defaults:
            raise ConfigError(f"config.{key} is not a field; one of {', '.join(sorted(defaults))}")
        like = defaults[key]
        if isinstance(value, Written):
            settings[key] = value = str(value) if isinstance(like, str) else value.literal()
        if isinstance(like, float) and type(value) is int:
            settings[key] = value = float(value)
        items = isinstance(value, (tuple, list)) and isinstance(like, tuple)
        if items and (not value or {type(item) for item in value} != {type(like[0])}):
            raise ConfigError(f"config.{key} must be like {like!r}, got {value!r}")
        if not items and type(value) is not type(like):
            raise ConfigError(f"config.{key} must be like {like!r}, got {value!r}")
        least = _LEAST.get(key, 1)
        numbers = value if items else [value]
        if any(type(x) in (int, float) and x < least for x in numbers):
            raise ConfigError(f"config.{key} must be at least {least}, got {value!r}")
    return settings


def check_divides(lengths: Sequence[int], steps: int) -> None:
    """Refuses segment lengths that do not divide the number of steps.

    Raises:
      ConfigError: naming the first such length.
    """
    for length in lengths:
        if steps % length:
            raise ConfigError(
                f"config.num_steps must be a multiple of each of segment_lengths, got {steps} and "
                f"{length}"
            )


def scaled_cell(name: str) -> Callable[..., Cell]:
    """The factory of a cell that takes `hidden_size` and `init_scale`.

    Raises:
      ConfigError: if there is no such cell of that name.
    """
    scaled = {
        other: make
        for other, make in CELLS.items()
        if {"hidden_size", "init_scale"} <= set(inspect.signature(make).parameters)
    }
    if name not in scaled:
        raise ConfigError(f"config.cell must be one of {', '.join(scaled)}, got {name!r}")
    return scaled[name]
