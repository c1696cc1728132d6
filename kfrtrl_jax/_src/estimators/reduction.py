"""Unbiased reduction of p pairs of vectors to r: of sum_i v_i b_i^T, with minimal error.

The reduction of `ok` (Benzing, Gauy, Mujika, Martinsson and Steger, 2019, arXiv:1902.03993). The
vectors are long, p and r small: all is found from inner products.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array
from kfrtrl_jax._src.estimators.common import balance


def by_signs(input_gram: Array, state_gram: Array, signs: Array) -> tuple[Array, Array]:
    """Mixing matrices from r + 1 pairs to r: new v_i = sum_j X_ij v_j and new b_i = sum_j Y_ij b_j.

    E[sum_i new v_i new b_i^T] = sum_j v_j b_j^T =: M, with |error|_F^2 = s^2 / q - sum of sigma^2 for
    every draw of the signs, where sigma are the q + 1 of M's singular values that are mixed and s is
    their sum. No unbiased reduction has a smaller error. The new pairs have equal norms.

    Directions of the v or of the b whose length relative to the longest is below the square root of
    the machine precision cannot be distinguished from rounding errors in a Gram matrix: they are
    dropped.

    Args:
      input_gram: the v_i's inner products, [r + 1, r + 1].
      state_gram: the b_i's, [r + 1, r + 1].
      signs: independent and fair, [r + 1].

    Returns:
      X and Y, [r, r + 1].
    """
    return _mixed(input_gram, state_gram, lambda sigma: _mixing(sigma, signs))


def by_sampling(
    input_gram: Array, state_gram: Array, uniform: Array, rank: int
) -> tuple[Array, Array]:
    """Mixing matrices from any larger number p of pairs to r, as `by_signs`.

    The largest singular values of M are kept, as few of them as leave the others no larger than s / q,
    where s is the sum of those others and q the number of pairs left for them. Each of these is picked
    with probability q sigma / s, and has the weight s / q then: exactly q of them, by systematic
    sampling, one random number against the cumulated probabilities. The mean of |error|_F^2 over draws
    is s^2 / q - sum of sigma^2.

    Args:
      input_gram: the v_i's inner products, [p, p].
      state_gram: the b_i's, [p, p].
      uniform: a random number in [0, 1).
      rank: r, less than p.

    Returns:
      X and Y, [r, p].
    """
    return _mixed(input_gram, state_gram, lambda sigma: sampling(sigma, uniform, rank))


def _mixed(
    input_gram: Array, state_gram: Array, mixing: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """X and Y, [r, p], for L = mixing(M's singular values in ascending order), [p, r]."""
    # Of equal norms in each pair, a pair is dropped only if its product is negligible.
    up, down = balance(jnp.sqrt(jnp.diag(input_gram)), jnp.sqrt(jnp.diag(state_gram)))
    balanced = jnp.stack([up[:, None] * input_gram * up, down[:, None] * state_gram * down])
    (root_v, root_b), (inverse_v, inverse_b) = jax.vmap(_root)(balanced)
    left, sigma, right = jnp.linalg.svd(root_v.T @ root_b)
    # Vanishing ones must be exactly 0: mixing turns a rounding error of size eps into noise of eps^1/2.
    sigma = jnp.where(sigma > _rounding_threshold(sigma[0], len(sigma)), sigma, 0)
    mix = mixing(sigma[::-1])
    # LAPACK's choice of sign for a pair of singular vectors depends on rounding; fix it.
    inputs = left.T[::-1] @ inverse_v
    largest = jnp.take_along_axis(inputs, jnp.argmax(jnp.abs(inputs), axis=1)[:, None], axis=1)
    mix = jnp.where(largest < 0, -mix, mix)
    return mix.T @ inputs * up, mix.T @ (right[::-1] @ inverse_b) * down


def sampling(sigma: Array, uniform: Array, rank: int) -> Array:
    """L with E[L L^T] = diag(sigma), [p, r], one number in each column: see `by_sampling`.

    Args:
      sigma: not negative, in ascending order, [p].
      uniform: a random number in [0, 1).
      rank: r, less than p.
    """
    count = len(sigma)
    place = jnp.arange(count)
    # For a number of kept ones from 0 to r - 1: the largest that is not kept, and the sum of all of
    # these.
    largest = sigma[::-1][:rank]
    sums = jnp.cumsum(sigma)[::-1][:rank]
    left_over = rank - jnp.arange(rank)
    fits = (left_over * largest <= sums) | (left_over == 1)
    kept = jnp.argmax(fits)
    q, s = rank - kept, sums[kept]
    mixed = place < count - kept
    even = mixed * q / jnp.maximum(count - kept, 1)
    shares = jnp.where(s > 0, q * sigma / jnp.where(s > 0, s, 1), even)
    probability = jnp.where(mixed, jnp.minimum(shares, 1), 1)
    ends = jnp.cumsum(probability)
    # One in each of the intervals of length 1; the last end is r but for rounding.
    picked = jnp.searchsorted(ends, jnp.arange(rank) + uniform, side="right")
    picked = jnp.minimum(picked, count - 1)
    weight = jnp.where(mixed, s / q, sigma)
    chosen = place[:, None] == picked
    return jnp.where(chosen & (sigma > 0)[:, None], jnp.sqrt(weight)[:, None], 0)


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
    negligible = values <= _rounding_threshold(values[-1], len(gram))
    root = jnp.sqrt(jnp.where(negligible, 0, values))
    inverse = jnp.where(negligible, 0, 1 / jnp.where(negligible, 1, root))
    return vectors * root, inverse[:, None] * vectors.T


def _rounding_threshold(largest: Array, size: int) -> Array:
    """size eps largest: below it an eigenvalue or singular value counts as a rounding error."""
    return size * jnp.finfo(largest.dtype).eps * largest
