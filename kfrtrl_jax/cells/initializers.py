"""How the cells draw their first weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kfrtrl_jax.base import Array, Key


def gaussian(key: Key, shape: tuple[int, int], scale: float) -> Array:
    """Weights [m, g] from N(0, scale^2), where scale 0 stands for m^-1/2."""
    deviation = jnp.where(jnp.asarray(scale) == 0, shape[0] ** -0.5, scale)
    return deviation * jax.random.normal(key, shape)
