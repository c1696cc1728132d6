"""Kronecker triple products, after Benzing et al. (2019, arXiv:1902.03993)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    Site,
    SiteGradients,
    Structure,
)
from kfrtrl_jax._src.estimators.common import norm, random_signs, require_products


class KtpState(NamedTuple):
    """A sum of r products u_i (x) b_i d_i^T in place of every site's influence matrix.

    Attributes:
      input_vectors: u, for every site [B, m, r].
      state_vectors: b, for every site [B, n, r].
      output_vectors: d, for every site [B, g, r].
    """

    input_vectors: tuple[Array, ...]
    state_vectors: tuple[Array, ...]
    output_vectors: tuple[Array, ...]


def ktp(rank: int) -> InfluenceEstimator:
    """u_i <- nu u_i + nu' a, b_i <- mu J b_i + mu' x_i, d_i <- nu mu d_i + nu' mu' y_i, random signs.

    sum_i x_i y_i^T is D at random: each column of D, with a sign, goes to one i, and columns that meet
    are scaled for the least noise. Where the columns are orthogonal (D diagonal) and their norms sum
    to the same for every i, the noise of this is s^2 / r - sum of sigma^2, the least there is at rank r
    unless some columns dwarf the others. The product of three signs, nu, mu and nu mu, is 1 where all
    belong to the same term and 0 on average elsewhere. The three factors of each product are made equal
    in norm beforehand.

    Unbiased; O(r (m + n + g)) memory and O(r (n^2 + m + g)) work a lane and site. How the old terms and
    the new are paired is this library's choice, not the paper's.

    Its init raises UnsupportedCellError for a cell with parameters in no product or sum with data.

    Args:
      rank: r.

    Raises:
      ValueError: if rank is less than 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")

    def init(structure: Structure) -> KtpState:
        require_products(structure, "ktp")
        b, n, dtype = structure.batch_size, structure.state_size, structure.dtype
        return KtpState(
            tuple(jnp.zeros((b, site.input_size, rank), dtype) for site in structure.sites),
            tuple(jnp.zeros((b, n, rank), dtype) for _ in structure.sites),
            tuple(jnp.zeros((b, site.output_size, rank), dtype) for site in structure.sites),
        )

    def push(state: KtpState, linearization: Linearization, key: Key) -> KtpState:
        new = [
            _push_site((u, linearization.jacobian.times(b), d), site, k)
            for u, b, d, site, k in zip(
                *state, linearization.sites, jax.random.split(key, len(linearization.sites))
            )
        ]
        return KtpState(*zip(*new))

    def pull(state: KtpState, cotangent: Array) -> SiteGradients:
        return tuple(
            jnp.einsum("bmr,bgr->mg", u * jnp.einsum("bn,bnr->br", cotangent, b)[:, None], d)
            for u, b, d in zip(*state)
        )

    def diagnostics(state: KtpState) -> dict[str, Array]:
        return {f"state_vectors_norm_{i}": jnp.mean(norm(b)) for i, b in enumerate(state[1])}

    return InfluenceEstimator(init, push, pull, diagnostics)


Triple = tuple[Array, Array, Array]


def _push_site(carried: Triple, site: Site, key: Key) -> Triple:
    """The new vectors of one site, for u, J b and d, each [B, size, r]."""
    batch, _, rank = carried[0].shape
    derivative_key, mix_key = jax.random.split(key)
    x, y = _rank_one_terms(site, rank, derivative_key)
    a = jnp.broadcast_to(site.input[..., None], (*site.input.shape, rank))
    nu, mu = random_signs(mix_key, (2, 2, batch, 1, rank), x.dtype)
    old_u, old_b, old_d = _equal_norms(carried)
    new_u, new_b, new_d = _equal_norms((a, x, y))
    return (
        nu[0] * old_u + nu[1] * new_u,
        mu[0] * old_b + mu[1] * new_b,
        nu[0] * mu[0] * old_d + nu[1] * mu[1] * new_d,
    )


def _rank_one_terms(site: Site, rank: int, key: Key) -> tuple[Array, Array]:
    """x [B, n, r] and y [B, g, r] with E[x y^T] = D: x_i = D (eps / w), y_i = w eps on i's columns."""
    derivative = site.derivative
    squared = dataclasses.replace(derivative, values=derivative.values**2)
    ones = jnp.ones((len(site.input), derivative.shape[0]), site.input.dtype)
    weights = squared.vector_times(ones) ** 0.25  # the root of each column's norm
    inverse = jnp.where(weights > 0, 1 / jnp.where(weights > 0, weights, 1), 0)
    signs = random_signs(key, weights.shape, weights.dtype)
    columns = np.arange(weights.shape[1])[:, None] % rank == np.arange(rank)
    x = derivative.times(jnp.where(columns, (signs * inverse)[..., None], 0))
    return x, jnp.where(columns, (signs * weights)[..., None], 0)


def _equal_norms(vectors: Triple) -> Triple:
    """The same products of vectors [B, size, r] with equal norms; all 0 where a product is 0."""
    norms = [jnp.linalg.norm(v, axis=1, keepdims=True) for v in vectors]
    present = (norms[0] > 0) & (norms[1] > 0) & (norms[2] > 0)
    norms = [jnp.where(present, x, 1) for x in norms]
    mean = jnp.exp(sum((jnp.log(x) for x in norms[1:]), jnp.log(norms[0])) / 3)
    u, b, d = (jnp.where(present, v * (mean / x), 0) for v, x in zip(vectors, norms))
    return u, b, d
