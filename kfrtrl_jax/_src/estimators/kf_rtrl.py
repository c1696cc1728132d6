"""Kronecker-factored RTRL (Mujika, Meier and Steger, 2018, arXiv:1805.10842)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    SiteGradients,
    SiteJacobian,
    Structure,
)
from kfrtrl_jax._src.estimators.common import (
    balance,
    factor_norms,
    joint_norm,
    require_products,
    term_norms,
    term_signs,
)
from kfrtrl_jax._src.matrices import BlockColumns, Terms, spans
from kfrtrl_jax._src.xla import norm


class KfRtrlState(NamedTuple):
    """A Kronecker product u (x) A in place of every site's influence matrix.

    Attributes:
      input_factor: u, for every site [B, m].
      state_factor: A, for every site the rows of each leaf of the carry, [B, n of the leaf, g]: J's
        columns are dense for some leaves and diagonal for others, and are multiplied leaf by leaf.
    """

    input_factor: tuple[Array, ...]
    state_factor: tuple[tuple[Array, ...], ...]


def kf_rtrl() -> InfluenceEstimator:
    """u <- p_0 u + sum_t c_t p_t a_t, A <- (J A) / p_0 + sum_t c_t D_t / p_t, for random signs c_t.

    One Kronecker product takes the place of T + 1, the old product and one for each of the T terms that
    are pushed at once; T = 1 is the paper's rule. p_0 and p_t make the two factors of each product
    equal in norm, which minimizes the noise. The paper has a sign for each term; only their products
    matter, so the old one has none.

    Unbiased; O(n g) memory and O(n^2 g) work per lane and site. A site whose input is the constant 1
    has m = 1 and is stored exactly, with u = 1.

    Its init raises UnsupportedCellError for a cell with parameters in no product or sum with data.
    """

    def init(structure: Structure) -> KfRtrlState:
        require_products(structure, "kf_rtrl")
        b, dtype = structure.batch_size, structure.dtype
        return KfRtrlState(
            tuple(
                (jnp.ones if site.input_size == 1 else jnp.zeros)((b, site.input_size), dtype)
                for site in structure.sites
            ),
            tuple(
                tuple(
                    jnp.zeros((b, size, site.output_size), dtype)
                    for size in structure.leaf_sizes or [structure.state_size]
                )
                for site in structure.sites
            ),
        )

    def push(state: KfRtrlState, linearization: Linearization, key: Key) -> KfRtrlState:
        pairs = [
            _push_exactly(u, a, linearization.jacobian, site)
            if u.shape[1] == 1
            else _push_site(u, a, linearization.jacobian, site, c)
            for u, a, site, c in zip(
                state.input_factor,
                state.state_factor,
                linearization.sites,
                term_signs(linearization.sites, key),
            )
        ]
        return KfRtrlState(tuple(u for u, _ in pairs), tuple(a for _, a in pairs))

    def pull(state: KfRtrlState, cotangent: Array) -> SiteGradients:
        return tuple(
            jnp.einsum("bm,bg->mg", u, _pull(cotangent, a))
            for u, a in zip(state.input_factor, state.state_factor)
        )

    def diagnostics(state: KfRtrlState) -> dict[str, Array]:
        return factor_norms(input_factor=state.input_factor, state_factor=state.state_factor)

    return InfluenceEstimator(init, push, pull, diagnostics)


Pair = tuple[Array, tuple[Array, ...]]


def _push_site(
    u: Array, factor: tuple[Array, ...], jacobian: BlockColumns, site: SiteJacobian, signs: Array
) -> Pair:
    """The new pair of one site.

    u (x) A equals u / p_0 (x) p_0 A, which is what is stored. So u has norm about 1, and A, by far the
    largest array, is written only by the product with J and by the update at D's entries.

    Args:
      u: [B, m].
      factor: A in blocks of rows, [B, n of the block, g].
      jacobian: J.
      site: a_t and D_t.
      signs: c_t, [B, T].
    """
    length = norm(u).astype(u.dtype)
    unit = u / jnp.where(length > 0, length, 1)[:, None]
    carried = jacobian.scaled(length).times_blocks(factor)
    has_past, up, down = _scales(length, joint_norm([norm(rows) for rows in carried]), site)
    new = jnp.einsum("bt,btm->bm", signs * up.astype(u.dtype), site.inputs)
    return (
        jnp.where(has_past[:, None], unit, 0) + new,
        _add(carried, site.derivatives, signs * down.astype(u.dtype)),
    )


def _scales(length: Array, carried_norm: Array, site: SiteJacobian) -> tuple[Array, Array, Array]:
    """Whether there is an old pair, [B], and p_t / p_0 and p_0 / p_t, [B, T].

    p_0^2 = |J A| / |u| for |u| = 1, and p_0 = 1 if there is no old pair;
    p_t^2 = |D_t| / |a_t|.
    """
    old, _ = balance(jnp.where(length > 0, 1, 0), carried_norm)
    up, down = balance(term_norms(site.inputs), jnp.sqrt(site.derivatives.squared_norms()))
    p0 = jnp.where(old > 0, old, 1)[:, None]
    return old > 0, up / p0, down * p0


def _push_exactly(
    u: Array, factor: tuple[Array, ...], jacobian: BlockColumns, site: SiteJacobian
) -> Pair:
    """The new pair of a site with m = 1, for u = 1."""
    carried = jacobian.times_blocks(factor)
    return u, _add(carried, site.derivatives, site.inputs[:, :, 0])


def _add(factor: Sequence[Array], derivatives: Terms, scales: Array) -> tuple[Array, ...]:
    """A + sum_t scale_t D_t, in A's blocks of rows; scales are [B, T]."""
    return tuple(
        derivatives.rows(start, stop).add_to(a, scales)
        for a, (start, stop) in zip(factor, spans(a.shape[1] for a in factor))
    )


def _pull(cotangent: Array, factor: Sequence[Array]) -> Array:
    """c^T A, [B, g]."""
    terms = [
        jnp.einsum("bn,bng->bg", cotangent[:, start:stop], a)
        for a, (start, stop) in zip(factor, spans(a.shape[1] for a in factor))
    ]
    return sum(terms[1:], terms[0])
