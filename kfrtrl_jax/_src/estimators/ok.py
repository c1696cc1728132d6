"""Optimal Kronecker-sum approximation (Benzing, Gauy, Mujika, Martinsson and Steger, 2019).

arXiv:1902.03993. A sum of r + 1 Kronecker products is replaced by one of r, at random, such that
its mean is right and no other way of doing so errs less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
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
    exact_einsum,
    factor_norms,
    random_signs,
    require_products,
)
from kfrtrl_jax._src.matrices import BlockColumns


class OkState(NamedTuple):
    """A sum of r Kronecker products u_i (x) A_i in place of every site's influence matrix.

    Attributes:
      input_factors: u_1 .. u_r, for every site [B, r, m].
      state_factors: A_1 .. A_r, for every site [B, r, n, g].
    """

    input_factors: tuple[Array, ...]
    state_factors: tuple[Array, ...]


def ok(rank: int) -> InfluenceEstimator:
    """The best unbiased sum of r products for sum_i u_i (x) J A_i + a (x) D, at every step.

    Unbiased; O(r n g) memory and O(r n^2 g + r^2 n g + r^3) work a lane and site. A site whose input is
    the constant 1 has m = 1 and is kept exactly, as one product with u = 1.

    Its init raises UnsupportedCellError for a cell with parameters in no product or sum with data.

    Args:
      rank: r. With r = 1 it takes the place of `kf_rtrl`, with no more noise.

    Raises:
      ValueError: if rank is less than 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")

    def init(structure: Structure) -> OkState:
        require_products(structure, "ok")
        b, n, dtype = structure.batch_size, structure.state_size, structure.dtype
        ranks = [1 if site.input_size == 1 else rank for site in structure.sites]
        return OkState(
            tuple(
                (jnp.ones if site.input_size == 1 else jnp.zeros)((b, r, site.input_size), dtype)
                for site, r in zip(structure.sites, ranks)
            ),
            tuple(
                jnp.zeros((b, r, n, site.output_size), dtype)
                for site, r in zip(structure.sites, ranks)
            ),
        )

    def push(state: OkState, linearization: Linearization, key: Key) -> OkState:
        terms = [
            _Terms(u, _carry(linearization.jacobian, a), site)
            for u, a, site in zip(state.input_factors, state.state_factors, linearization.sites)
        ]
        factored = [t for t in terms if t.site.input.shape[1] > 1]
        mixes: Iterator[tuple[Array, Array]] = iter(())
        if factored:
            # One call for all sites: decompositions side by side can block each other on a CPU.
            grams = [_grams(t) for t in factored]
            input_grams, state_grams = (jnp.stack(g) for g in zip(*grams))
            signs = random_signs(key, input_grams.shape[:-1], input_grams.dtype)
            mixes = zip(*jax.vmap(jax.vmap(reduction))(input_grams, state_grams, signs))
        pairs = [_mixed(t, *next(mixes)) if t.site.input.shape[1] > 1 else _exact(t) for t in terms]
        return OkState(tuple(u for u, _ in pairs), tuple(a for _, a in pairs))

    def pull(state: OkState, cotangent: Array) -> SiteGradients:
        return tuple(
            jnp.einsum("brm,brg->mg", u, _pull(cotangent, a))
            for u, a in zip(state.input_factors, state.state_factors)
        )

    def diagnostics(state: OkState) -> dict[str, Array]:
        return factor_norms(input_factors=state.input_factors, state_factors=state.state_factors)

    return InfluenceEstimator(init, push, pull, diagnostics)


def _carry(jacobian: BlockColumns, factors: Array) -> Array:
    """J A_i for all i, for factors [B, r, n, g].

    J is written r times over: less work than to move the factors side by side and back.
    """
    b, r, _, _ = factors.shape
    repeated = jax.tree.map(
        lambda values: jnp.broadcast_to(values[:, None], (b, r, *values.shape[1:])), jacobian.blocks
    )
    return BlockColumns(repeated).times(factors)


def _pull(cotangent: Array, factors: Array) -> Array:
    """c^T A_i for all i, [B, r, g]; c is repeated, or XLA would move the factors side by side."""
    repeated = jnp.broadcast_to(cotangent[:, None], factors.shape[:3])
    return jnp.einsum("brn,brng->brg", repeated, factors)


class _Terms(NamedTuple):
    """The r + 1 products of one site: sum_i u_i (x) J A_i + a (x) D.

    Attributes:
      inputs: u, [B, r, m].
      carried: J A, [B, r, n, g].
      site: a and D.
    """

    inputs: Array
    carried: Array
    site: Site

    def add_derivative(self, factors: Array, scales: Array) -> Array:
        """A_i + scale_i D, for factors [B, r, n, g] and scales [B, r]."""
        derivative = self.site.derivative
        # With an axis for r, not under vmap, which would move that of the factors to the front.
        one = dataclasses.replace(derivative, values=derivative.values[:, None])
        return one.add_to(factors, scales)

    def all_inputs(self) -> Array:
        """u_1 .. u_r, a: [B, r + 1, m]."""
        return jnp.concatenate([self.inputs, self.site.input[:, None]], axis=1)


def _exact(terms: _Terms) -> tuple[Array, Array]:
    """The new pair where m = 1: there is but one direction."""
    return terms.inputs, terms.add_derivative(terms.carried, terms.site.input)


def _grams(terms: _Terms) -> tuple[Array, Array]:
    """The inner products of the u_i and a, and of the J A_i and D, [B, r + 1, r + 1] both."""
    inputs, derivative = terms.all_inputs(), terms.site.derivative
    # Flat, as XLA multiplies over one axis much faster than over two.
    carried = terms.carried.reshape(*terms.carried.shape[:2], -1)
    square = exact_einsum("bik,bjk->bij", carried, carried)
    flat_derivative = derivative.dense().reshape(len(carried), 1, -1)
    border = exact_einsum("bik,bjk->bij", carried, flat_derivative)
    corner = derivative.squared_norm()[:, None, None]
    return (
        exact_einsum("bim,bjm->bij", inputs, inputs),
        jnp.block([[square, border], [jnp.swapaxes(border, 1, 2), corner]]),
    )


def _mixed(terms: _Terms, mix_inputs: Array, mix_states: Array) -> tuple[Array, Array]:
    """The new pairs, for mix_inputs and mix_states [B, r, r + 1]."""
    dtype = terms.inputs.dtype
    mixed = exact_einsum("bij,bjng->bing", mix_states[..., :-1], terms.carried).astype(dtype)
    return (
        exact_einsum("bij,bjm->bim", mix_inputs, terms.all_inputs()).astype(dtype),
        terms.add_derivative(mixed, mix_states[..., -1].astype(dtype)),
    )


def reduction(input_gram: Array, state_gram: Array, signs: Array) -> tuple[Array, Array]:
    """How to make r pairs of r + 1: new v_i = sum_j X_ij v_j and new b_i = sum_j Y_ij b_j.

    E[sum_i new v_i new b_i^T] = sum_j v_j b_j^T =: M, with |error|_F^2 = s^2 / q - sum of sigma^2 for
    every draw of the signs, where sigma are the q + 1 of M's singular values that are mixed and s is
    their sum. It is the least that any unbiased reduction can have. The new pairs have equal norms.

    Directions of the v or of the b whose length relative to the longest is below the square root of
    the machine precision cannot be told from rounding errors in a Gram matrix, and are dropped.

    Args:
      input_gram: the v_i's inner products, [r + 1, r + 1].
      state_gram: the b_i's, [r + 1, r + 1].
      signs: independent and fair, [r + 1].

    Returns:
      X and Y, [r, r + 1].
    """
    # Of equal norms in each pair, a pair is dropped only if its product is negligible.
    up, down = balance(jnp.sqrt(jnp.diag(input_gram)), jnp.sqrt(jnp.diag(state_gram)))
    balanced = jnp.stack([up[:, None] * input_gram * up, down[:, None] * state_gram * down])
    (root_v, root_b), (inverse_v, inverse_b) = jax.vmap(_root)(balanced)
    left, sigma, right = jnp.linalg.svd(root_v.T @ root_b)
    # What vanishes must do so exactly: mixed in, a rounding error of size eps makes noise eps^1/2.
    sigma = jnp.where(sigma > _negligible(sigma[0], len(signs)), sigma, 0)
    mix = _mixing(sigma[::-1], signs)
    # Of the signs that a pair of singular vectors can have LAPACK takes one or the other by rounding.
    inputs = left.T[::-1] @ inverse_v
    largest = jnp.take_along_axis(inputs, jnp.argmax(jnp.abs(inputs), axis=1)[:, None], axis=1)
    mix = jnp.where(largest < 0, -mix, mix)
    return mix.T @ inputs * up, mix.T @ (right[::-1] @ inverse_b) * down


def _mixing(sigma: Array, signs: Array) -> Array:
    """L with E[L L^T] = diag(sigma): [r + 1, r], for sigma in ascending order.

    The q + 1 smallest are mixed, with L = (s / q)^1/2 diag(signs) Z there, where Z is an orthonormal
    basis of the complement of the unit vector v, v_i = (1 - q sigma_i / s)^1/2. The others are kept.
    """
    place = jnp.arange(len(sigma))
    sums = jnp.cumsum(sigma)
    # The two smallest are always mixed; the condition holds up to some place and not beyond.
    mixed = (place < 2) | (place * sigma <= sums)
    q = jnp.sum(mixed) - 1
    s = sums[q]
    squares = jnp.where(mixed, jnp.maximum(s - q * sigma, 0), 0)
    total = jnp.sum(squares)
    v = jnp.sqrt(jnp.where(total > 0, squares / jnp.where(total > 0, total, 1), mixed / (q + 1)))
    # The reflection that takes the first unit vector to -v leaves those of the kept ones in place.
    w = v.at[0].add(1)
    basis = (jnp.eye(len(sigma), dtype=sigma.dtype) - jnp.outer(w, w) / w[0])[:, 1:]
    return jnp.where(mixed, signs * jnp.sqrt(s / q), jnp.sqrt(sigma))[:, None] * basis


def _root(gram: Array) -> tuple[Array, Array]:
    """C with C C^T = gram, and its pseudo-inverse."""
    values, vectors = jnp.linalg.eigh(gram)
    negligible = values <= _negligible(values[-1], len(gram))
    root = jnp.sqrt(jnp.where(negligible, 0, values))
    inverse = jnp.where(negligible, 0, 1 / jnp.where(negligible, 1, root))
    return vectors * root, inverse[:, None] * vectors.T


def _negligible(largest: Array, size: int) -> Array:
    """What is lost beside the largest eigenvalue or singular value of a matrix of this size."""
    return size * jnp.finfo(largest.dtype).eps * largest
