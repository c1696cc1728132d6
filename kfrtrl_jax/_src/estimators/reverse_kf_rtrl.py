"""Reverse Kronecker-factored RTRL (Marschall, Cho and Savin, 2020, arXiv:1907.02649)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    SiteGradients,
    SiteJacobian,
    Structure,
)
from kfrtrl_jax._src.estimators.common import balance, factor_norms, term_norms
from kfrtrl_jax._src.estimators.uoro import pre_activation_signs
from kfrtrl_jax._src.xla import norm, outer_sum


class ReverseKfRtrlState(NamedTuple):
    """Every site's influence matrix as a Kronecker product, G[i, (j, l)] = b_l C[i, j].

    Attributes:
      output_factor: b, for every site [B, g].
      state_factor: C, for every site [B, n, m].
    """

    output_factor: tuple[Float[Array, "B _g"], ...]
    state_factor: tuple[Float[Array, "B n _m"], ...]


def reverse_kf_rtrl() -> InfluenceEstimator:
    """b <- p_0 b + sum_t p_t nu_t, C <- (J C) / p_0 + sum_t ((D_t nu_t) (x) a_t) / p_t.

    `kf_rtrl` with the roles of W's two sides swapped. The random signs nu_t in {+-1}^g, drawn for every
    term of every site, split D_t and also serve as the sign between the products: E[nu (D nu)^T] = D^T,
    the cross terms are odd in nu, and p_t is even in it. p_0 and p_t make the two factors of each
    product equal in norm.

    Unbiased; O(g + n m) memory and O(n^2 m) work per lane and site. A single step already adds noise of
    (g - 1) |a|^2 |D|^2, which `kf_rtrl` does not have. It takes any cell: a parameter in no product is
    a site with m = 1.
    """

    def init(structure: Structure) -> ReverseKfRtrlState:
        b, n, dtype = structure.batch_size, structure.state_size, structure.dtype
        return ReverseKfRtrlState(
            tuple(jnp.zeros((b, site.output_size), dtype) for site in structure.sites),
            tuple(jnp.zeros((b, n, site.input_size), dtype) for site in structure.sites),
        )

    def push(
        state: ReverseKfRtrlState, linearization: Linearization, key: Key
    ) -> ReverseKfRtrlState:
        signs = pre_activation_signs(linearization.sites, key)
        mixed = linearization.times_each([nu[..., None] for nu in signs])
        pairs = [
            _push_site(b, linearization.jacobian.times(c), site, nu, x[..., 0])
            for b, c, site, nu, x in zip(*state, linearization.sites, signs, mixed)
        ]
        return ReverseKfRtrlState(tuple(b for b, _ in pairs), tuple(c for _, c in pairs))

    def pull(state: ReverseKfRtrlState, cotangent: Float[Array, "B n"]) -> SiteGradients:
        return tuple(
            jnp.einsum("bm,bg->mg", jnp.einsum("bn,bnm->bm", cotangent, c), b)
            for b, c in zip(state.output_factor, state.state_factor)
        )

    def diagnostics(state: ReverseKfRtrlState) -> dict[str, Array]:
        return factor_norms(output_factor=state.output_factor, state_factor=state.state_factor)

    return InfluenceEstimator(init, push, pull, diagnostics)


def _push_site(
    b: Float[Array, "B g"],
    carried: Float[Array, "B n m"],
    site: SiteJacobian,
    nu: Float[Array, "B T g"],
    mixed: Float[Array, "B T n"],
) -> tuple[Float[Array, "B g"], Float[Array, "B n m"]]:
    """The new pair of one site.

    Args:
      b: the old output factor.
      carried: J C.
      site: a_t and D_t.
      nu: the signs.
      mixed: D_t nu_t.
    """
    up0, down0 = balance(norm(b), norm(carried))
    up, down = balance(term_norms(nu), term_norms(mixed) * term_norms(site.inputs))
    new = outer_sum(down[..., None] * mixed, site.inputs)
    return (
        up0[:, None] * b + jnp.einsum("bt,btg->bg", up, nu),
        down0[:, None, None] * carried + new,
    )
