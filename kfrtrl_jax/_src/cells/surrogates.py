"""Spikes with surrogate derivatives (Neftci, Mostafa and Zenke, 2019, arXiv:1901.09948).

A spike is a step function of the membrane, whose derivative is 0 almost everywhere. In every derivative
of the cell another function takes its place, exact gradients included: they are exact for that choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array

Surrogate = Literal["triangle", "fast_sigmoid", "arctan", "boxcar"]


def spike_function(surrogate: Surrogate) -> Callable[[Array], Array]:
    """Excess over the threshold, in units of the threshold, [...] -> 1 where it is positive, else 0.

    Args:
      surrogate: the derivative at the excess v:
        - "triangle": 0.3 max(0, 1 - |v|) (Bellec et al., 2018, arXiv:1803.09574);
        - "fast_sigmoid": 1 / (1 + 10 |v|)^2 (Zenke and Ganguli, 2018, arXiv:1705.11146);
        - "arctan": 1 / (1 + (pi v)^2) (Fang et al., 2021, arXiv:2007.05785);
        - "boxcar": 1/2 where |v| <= 1/2, else 0 (Bittar and Garner, 2022).

    Raises:
      ValueError: if there is no such surrogate.
    """
    if surrogate not in _SLOPES:
        raise ValueError(f"surrogate must be one of {', '.join(_SLOPES)}, got {surrogate!r}")
    slope = _SLOPES[surrogate]

    @jax.custom_jvp
    def spike(excess: Array) -> Array:
        return (excess > 0).astype(excess.dtype)

    @spike.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (excess,), (tangent,) = primals, tangents
        return spike(excess), slope(excess) * tangent

    return spike


_SLOPES: dict[str, Callable[[Array], Array]] = {
    "triangle": lambda v: 0.3 * jnp.maximum(0.0, 1 - jnp.abs(v)),
    "fast_sigmoid": lambda v: (1 + 10 * jnp.abs(v)) ** -2,
    "arctan": lambda v: 1 / (1 + (math.pi * v) ** 2),
    "boxcar": lambda v: 0.5 * (jnp.abs(v) <= 0.5).astype(v.dtype),
}
