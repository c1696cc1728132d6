"""Reverse Kronecker-factored RTRL (Marschall, Cho and Savin, 2020, arXiv:1907.02649)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    Site,
    SiteGradients,
    Structure,
)
from kfrtrl_jax._src.estimators.common import balance, factor_norms, norm
from kfrtrl_jax._src.estimators.uoro import site_signs


class ReverseKfRtrlState(NamedTuple):
    """Every site's influence matrix as a Kronecker product, G[i, (j, l)] = b_l C[i, j].

    Attributes:
      output_factor: b, for every site [B, g].
      state_factor: C, for every site [B, n, m].
    """

    output_factor: tuple[Array, ...]
    state_factor: tuple[Array, ...]


def reverse_kf_rtrl() -> InfluenceEstimator:
    """b <- p1 b + p2 nu, C <- (J C) / p1 + ((D nu) (x) a) / p2, for random signs nu in {+-1}^g.

    `kf_rtrl` with the roles of W's two sides swapped. nu, one for every site, is both what splits D and
    the sign between old and new: E[nu (D nu)^T] = D^T, the cross terms are odd in nu, and p2 is even in
    it. p1 and p2 make the two factors of either product equal in norm.

    Unbiased; O(g + n m) memory and O(n^2 m) work a lane and site. Of a step's own noise, (g - 1)
    |a|^2 |D|^2, `kf_rtrl` has nothing. It takes any cell: one without a product has m = 1.
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
        pairs = [
            _push_site(b, linearization.jacobian.times(c), site, nu)
            for b, c, site, nu in zip(
                state.output_factor,
                state.state_factor,
                linearization.sites,
                site_signs(linearization.sites, key),
            )
        ]
        return ReverseKfRtrlState(tuple(b for b, _ in pairs), tuple(c for _, c in pairs))

    def pull(state: ReverseKfRtrlState, cotangent: Array) -> SiteGradients:
        return tuple(
            jnp.einsum("bm,bg->mg", jnp.einsum("bn,bnm->bm", cotangent, c), b)
            for b, c in zip(state.output_factor, state.state_factor)
        )

    def diagnostics(state: ReverseKfRtrlState) -> dict[str, Array]:
        return factor_norms(output_factor=state.output_factor, state_factor=state.state_factor)

    return InfluenceEstimator(init, push, pull, diagnostics)


def _push_site(b: Array, carried: Array, site: Site, nu: Array) -> tuple[Array, Array]:
    """The new pair of one site.

    Args:
      b: [B, g].
      carried: J C, [B, n, m].
      site: a and D.
      nu: [B, g].
    """
    mixed = site.derivative.times(nu[..., None])[..., 0]
    up1, down1 = balance(norm(b), norm(carried))
    up2, down2 = balance(norm(nu), norm(mixed) * norm(site.input))
    return (
        up1[:, None] * b + up2[:, None] * nu,
        down1[:, None, None] * carried
        + (down2[:, None] * mixed)[:, :, None] * site.input[:, None, :],
    )
