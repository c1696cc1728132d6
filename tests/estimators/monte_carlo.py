"""Whether a mean over draws is the exact influence matrix, at small size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax import estimators
from kfrtrl_jax.base import Cell, InfluenceEstimator
from tests.trajectories import BATCH_SIZE, influence_rows, push_all, run

PROJECTIONS = 6


def deviations(
    estimator: InfluenceEstimator, cell: Cell, draws: int = 4096, steps: int = 8
) -> np.ndarray:
    """Of a few random projections of the mean of G~ from those of G, in standard errors."""
    trajectory = run(cell, steps)
    n = trajectory.linearizer.structure.state_size
    cotangents = jax.random.normal(jax.random.key(11), (PROJECTIONS, BATCH_SIZE, n))

    def rows(estimator: InfluenceEstimator, key: jax.Array) -> jax.Array:
        state = push_all(estimator, trajectory, key)
        return influence_rows(estimator, trajectory, state, cotangents)

    @jax.jit
    def projections(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        exact = rows(estimators.rtrl(), keys[0])
        directions = jax.random.normal(jax.random.key(12), exact.shape)
        drawn = jax.vmap(lambda k: jnp.sum(rows(estimator, k) * directions, axis=1))(keys)
        return drawn, jnp.sum(exact * directions, axis=1)

    drawn, exact = projections(jax.random.split(jax.random.key(13), draws))
    return (drawn.mean(axis=0) - exact) / (drawn.std(axis=0, ddof=1) / np.sqrt(draws))
