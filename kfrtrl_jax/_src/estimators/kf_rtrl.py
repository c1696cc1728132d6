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
    Site,
    SiteGradients,
    Structure,
)
from kfrtrl_jax._src.estimators.common import (
    balance,
    factor_norms,
    joint_norm,
    norm,
    random_signs,
    require_products,
)
from kfrtrl_jax._src.matrices import BlockColumns, Matrix, spans


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
    """u <- p1 u + c p2 a, A <- (J A) / p1 + c D / p2, for a random sign c.

    p1 and p2 make the two factors of either product equal in norm, which makes the noise least. The
    paper has a sign for either term; only their product c is in u (x) A.

    What is kept is u / p1 and p1 A, whose product is the same: u stays about 1 in norm, and A has the
    norm of G.

    Unbiased; O(n g) memory and O(n^2 g) work a lane and site. A site whose input is the constant 1 has
    m = 1 and is kept exactly, with u = 1: there is nothing to factor.

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
        batch, dtype = state.input_factor[0].shape[0], state.input_factor[0].dtype
        signs = random_signs(key, (len(linearization.sites), batch), dtype)
        jacobian = linearization.jacobian
        pairs = [
            _push_site(u, a, jacobian, site, c)
            for u, a, site, c in zip(
                state.input_factor, state.state_factor, linearization.sites, signs
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


def _pull(cotangent: Array, factor: Sequence[Array]) -> Array:
    """c^T A, [B, g]."""
    terms = [
        jnp.einsum("bn,bng->bg", cotangent[:, start:stop], a)
        for a, (start, stop) in zip(factor, spans(a.shape[1] for a in factor))
    ]
    return sum(terms[1:], terms[0])


def _push_site(
    u: Array, factor: tuple[Array, ...], jacobian: BlockColumns, site: Site, sign: Array
) -> tuple[Array, tuple[Array, ...]]:
    """The new pair of one site.

    In place of u' and A' these are u' / p1 and p1 A', whose product is the same, and the next step has
    u / |u| and |u| J A: A, by far the largest of all, is written by the product alone, and then on the
    bands of D.

    Args:
      u: [B, m].
      factor: A in blocks of rows, [B, n of the block, g].
      jacobian: J.
      site: a and D.
      sign: [B].
    """
    if u.shape[1] == 1:
        return u, _add(site.derivative, jacobian.times_blocks(factor), site.input[:, 0])
    length = norm(u).astype(u.dtype)
    present = length > 0
    unit = u / jnp.where(present, length, 1)[:, None]
    carried = jacobian.scaled(length).times_blocks(factor)
    carried_norm = joint_norm([norm(rows) for rows in carried])
    up1, down1 = balance(jnp.where(present, 1, 0), carried_norm)
    up2, down2 = balance(norm(site.input), jnp.sqrt(site.derivative.squared_norm()))
    # Where there is nothing to carry on up1 is 0, and the new product stands alone.
    alone = up1 == 0
    up = jnp.where(alone, up2, down1 * up2)
    down = sign * jnp.where(alone, down2, up1 * down2)
    kept = jnp.where(alone[:, None], 0, unit)
    return (
        kept + (sign * up).astype(u.dtype)[:, None] * site.input,
        _add(site.derivative, carried, down),
    )


def _add(derivative: Matrix, factor: Sequence[Array], scale: Array) -> tuple[Array, ...]:
    """A + scale * D, in A's blocks of rows."""
    return tuple(
        derivative.rows(start, stop).add_to(a, scale)
        for a, (start, stop) in zip(factor, spans(a.shape[1] for a in factor))
    )
