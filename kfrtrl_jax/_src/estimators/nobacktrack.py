"""NoBackTrack (Ollivier, Tallec and Charpiat, 2015, arXiv:1507.07680)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Array, InfluenceEstimator, Key, Linearization
from kfrtrl_jax._src.estimators.common import balance, norm, random_signs
from kfrtrl_jax._src.estimators.uoro import UoroState, accumulate, rank_one
from kfrtrl_jax._src.matrices import Banded, Matrix


def nobacktrack() -> InfluenceEstimator:
    """s~ <- rho0 J s~ + sum_i nu_i rho_i e_i, theta~ <- theta~ / rho0 + sum_i nu_i I_i / rho_i.

    I_i is row i of I, e_i the unit vector, nu_i a random sign and rho_i^2 = |I_i|: `uoro` with a scale
    for every unit. A unit whose row of I is 0 gets no noise at all. Unbiased; of a step's own noise it
    has (sum_i |I_i|)^2 - |I|^2, where `uoro` has n |I|^2 - |I|^2, as much only if all rows have the
    same norm. O(n + P) memory and O(n^2 + P) work a lane.
    """

    def push(state: UoroState, linearization: Linearization, key: Key) -> UoroState:
        sites = linearization.sites
        squares = [
            (norm(site.input) ** 2)[:, None] * _row_squares(site.derivative) for site in sites
        ]
        row_norms = jnp.sqrt(sum(squares[1:], squares[0]))
        up, down = balance(jnp.ones_like(row_norms), row_norms)
        nu = random_signs(key, row_norms.shape, row_norms.dtype)
        parts = [site.derivative.vector_times(nu * down) for site in sites]
        return accumulate(state, linearization, nu * up, parts)

    return rank_one(push)


def _row_squares(matrix: Matrix) -> Array:
    """The squared norm of every row, [B, rows], accumulated in at least float32."""
    values = matrix.values.astype(jnp.promote_types(matrix.values.dtype, jnp.float32))
    if isinstance(matrix, Banded):
        present: np.ndarray = matrix.columns.array >= 0
        return jnp.sum(jnp.where(present, values * values, 0), axis=-2)
    return jnp.sum(values * values, axis=-1)
