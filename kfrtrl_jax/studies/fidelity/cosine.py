"""The cosine between gradients."""

from __future__ import annotations

import jax.numpy as jnp

from kfrtrl_jax.base import Array


def of_rows(one: Array, other: Array) -> Array:
    """The cosines [N] between the rows of two matrices [N, P]; 0 where a row is 0."""
    product = jnp.sum(one * other, axis=1)
    norms = jnp.linalg.norm(one, axis=1) * jnp.linalg.norm(other, axis=1)
    return jnp.where(norms > 0, product / jnp.where(norms > 0, norms, 1), 0)
