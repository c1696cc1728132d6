"""NoBackTrack (Ollivier, Tallec and Charpiat, 2015, arXiv:1507.07680)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src.base import Array, InfluenceEstimator, Key, Linearization, SiteJacobian
from kfrtrl_jax._src.estimators.common import balance, exact_einsum, random_signs, term_norms
from kfrtrl_jax._src.estimators.uoro import UoroState, accumulate, rank_one


def nobacktrack() -> InfluenceEstimator:
    """s~ <- rho0 J s~ + sum_i nu_i rho_i e_i, theta~ <- theta~ / rho0 + sum_i nu_i I_i / rho_i.

    I_i is row i of I, e_i the unit vector, nu_i a random sign and rho_i^2 = |I_i|. This is `uoro` with
    a scale for every unit; a unit whose row of I is 0 gets no noise. Unbiased. The noise that a step
    adds is (sum_i |I_i|)^2 - |I|^2; that of `uoro` is n |I|^2 - |I|^2, which is larger unless all rows
    have the same norm. O(n + P) memory and O(n^2 + P) work per lane.
    """

    def push(state: UoroState, linearization: Linearization, key: Key) -> UoroState:
        sites = linearization.sites
        squares = [_row_squares(site) for site in sites]
        row_norms = jnp.sqrt(sum(squares[1:], squares[0]))
        up, down = balance(jnp.ones_like(row_norms), row_norms)
        nu = random_signs(key, row_norms.shape, row_norms.dtype)
        dtype = sites[0].inputs.dtype
        parts = linearization.vector_times((nu * down).astype(dtype))
        return accumulate(state, linearization, (nu * up).astype(dtype), parts)

    return rank_one(push)


def _row_squares(site: SiteJacobian) -> Float[Array, "B n"]:
    """The squared norm of every row of sum_t a_t (x) D_t; 0 only if all terms are 0."""
    sizes = jnp.einsum("bt,btn->bn", term_norms(site.inputs) ** 2, site.derivatives.row_squares())
    if site.derivatives.count == 1:
        return sizes
    derivatives = site.derivatives.dense()
    between = exact_einsum("btm,bsm->bts", site.inputs, site.inputs)
    mixed = exact_einsum("bts,bsng->btng", between, derivatives)
    squares = jnp.sum(mixed * derivatives, axis=(1, 3))
    return jnp.maximum(squares, jnp.finfo(squares.dtype).eps * sizes)
