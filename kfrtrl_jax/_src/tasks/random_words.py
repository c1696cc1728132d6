"""Random numbers of many kinds from one PRNG call, as each call costs as much as a small product."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Key


def words(key: Key, *shape: int) -> Array:
    """Independent words of 32 random bits, uint32; the key is typed or raw."""
    return jax.random.bits(key, shape, jnp.uint32)


def below(words: Array, count: int) -> Array:
    """Integers in [0, count), int32; their bias is negligible for a count far below 2^32."""
    return (words % count).astype(jnp.int32)


def uniform(words: Array) -> Array:
    """Floats in [0, 1), multiples of 2^-24 in any precision; a word's last 8 bits are not used."""
    return (words >> 8).astype(float) * 2.0**-24


def normal(words: Array) -> Array:
    """Standard normal floats, below 5.5 in magnitude."""
    return math.sqrt(2) * jax.lax.erf_inv(2 * uniform(words) + (2.0**-24 - 1))
