"""Kronecker triple products, after Benzing et al. (2019, arXiv:1902.03993)."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    SiteGradients,
    Structure,
)
from kfrtrl_jax._src.estimators.common import random_signs, require_products
from kfrtrl_jax._src.estimators.reduction import sampling
from kfrtrl_jax._src.xla import norm

Reduction = Literal["signs", "sampling"]


class KtpState(NamedTuple):
    """Every site's influence matrix as a sum of r products u_i (x) b_i d_i^T.

    Attributes:
      input_vectors: u, for every site [B, m, r].
      state_vectors: b, for every site [B, n, r].
      output_vectors: d, for every site [B, g, r].
    """

    input_vectors: tuple[Float[Array, "B _m r"], ...]
    state_vectors: tuple[Float[Array, "B n r"], ...]
    output_vectors: tuple[Float[Array, "B _g r"], ...]


def ktp(rank: int, reduction: Reduction = "signs") -> InfluenceEstimator:
    """u_i <- sum_t nu_t a_t, b_i <- sum_t mu_t x_ti, d_i <- sum_t nu_t mu_t y_ti, for random signs.

    Term t = 0 is the old one: u_i, J b_i and d_i. Terms 1 to T belong to the steps that are pushed at
    once. sum_i x_ti y_ti^T is a random matrix with mean D_t: each column of D is assigned, with a
    random sign, to one i, and columns with the same i are scaled for the least noise. If the columns
    are orthogonal (D diagonal) and their norms have the same sum for every i, the noise of this step is
    s^2 / r - sum of sigma^2, the least possible at rank r unless some columns dwarf the others. The
    product of the three signs nu, mu and nu mu is 1 if all belong to the same term, and 0 on average
    otherwise. The three factors of each product are scaled to equal norms beforehand.

    Of two products of norm 1 the signs leave a squared error of 6, as there are six mixed products of
    their factors. Keeping one of the two at random, twice as large, leaves 2. This is what
    reduction="sampling" does: of all (T + 1) r products r are kept, the largest as they are and others
    with a probability in proportion to their norms, by which they are divided (`reduction.sampling`).

    Unbiased; O(r (m + n + g)) memory and O(r (n^2 + m + g)) work per lane and site. The pairing of old
    and new terms is this library's choice, not the paper's.

    Its init raises UnsupportedCellError for a cell with a parameter that enters no product or sum with
    data.

    Args:
      rank: r.
      reduction: of old and new products to r, as above.

    Raises:
      ValueError: if rank is less than 1, or there is no such reduction.
    """
    bounds.require("[1, inf)", rank=rank)
    if reduction not in get_args(Reduction):
        raise ValueError(
            f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}"
        )
    reduced = _by_signs if reduction == "signs" else _by_sampling

    def init(structure: Structure) -> KtpState:
        require_products(structure, "ktp")
        b, n, dtype = structure.batch_size, structure.state_size, structure.dtype
        return KtpState(
            tuple(jnp.zeros((b, site.input_size, rank), dtype) for site in structure.sites),
            tuple(jnp.zeros((b, n, rank), dtype) for _ in structure.sites),
            tuple(jnp.zeros((b, site.output_size, rank), dtype) for site in structure.sites),
        )

    def push(state: KtpState, linearization: Linearization, key: Key) -> KtpState:
        sites = linearization.sites
        keys = [jax.random.split(k) for k in jax.random.split(key, len(sites))]
        of_columns = [
            _split_columns(weights, rank, k[0])
            for weights, k in zip(_column_weights(linearization), keys)
        ]
        x = linearization.times_each([right for right, _ in of_columns])
        new = [
            reduced((u, linearization.times(b), d), (site.inputs, x_, y), k[1])
            for u, b, d, site, x_, (_, y), k in zip(*state, sites, x, of_columns, keys)
        ]
        return KtpState(*zip(*new))

    def pull(state: KtpState, cotangent: Float[Array, "B n"]) -> SiteGradients:
        return tuple(
            jnp.einsum("bmr,bgr->mg", u * jnp.einsum("bn,bnr->br", cotangent, b)[:, None], d)
            for u, b, d in zip(*state)
        )

    def diagnostics(state: KtpState) -> dict[str, Array]:
        return {f"state_vectors_norm_{i}": jnp.mean(norm(b)) for i, b in enumerate(state[1])}

    return InfluenceEstimator(init, push, pull, diagnostics)


Triple = tuple[Float[Array, "B m r"], Float[Array, "B n r"], Float[Array, "B g r"]]
NewTerms = tuple[Float[Array, "B T m"], Float[Array, "B T n r"], Float[Array, "B T g r"]]


def _by_signs(old: Triple, new: NewTerms, key: Key) -> Triple:
    """The new vectors of one site.

    Args:
      old: u, J b and d.
      new: a_t, x_t and y_t.
      key: of the signs.
    """
    inputs, x, y = new
    batch, terms, _, rank = x.shape
    a = jnp.broadcast_to(inputs[..., None], (*inputs.shape, rank))
    nu, mu = random_signs(key, (2, 1 + terms, batch, 1, rank), x.dtype)
    first = _equal_norms(old)
    later = jax.vmap(_equal_norms, in_axes=1)((a, x, y))
    u, b, d = (
        sign[0] * one + jnp.sum(sign[1:] * many, axis=0)
        for sign, one, many in zip((nu, mu, nu * mu), first, later)
    )
    return u, b, d


def _by_sampling(old: Triple, new: NewTerms, key: Key) -> Triple:
    """As `_by_signs`, by a choice of r of all products."""
    inputs, x, y = new
    batch, _, _, rank = x.shape
    a = jnp.broadcast_to(inputs[..., None], (*inputs.shape, rank))

    def all_of(one: Array, many: Array) -> Float[Array, "B size p"]:
        return jnp.concatenate([one, *jnp.moveaxis(many, 1, 0)], axis=2)

    products = [all_of(one, many) for one, many in zip(old, (a, x, y))]
    norms = [jnp.linalg.norm(v, axis=1) for v in products]
    sizes = norms[0] * norms[1] * norms[2]
    ascending = jnp.argsort(sizes, axis=1)
    uniform = jax.random.uniform(key, (batch,), x.dtype)
    choices = jax.vmap(sampling, in_axes=(0, 0, None))(
        jnp.take_along_axis(sizes, ascending, axis=1), uniform, rank
    )
    place = jnp.take_along_axis(ascending, jnp.argmax(choices, axis=1), axis=1)
    # Each factor's share of what the chosen product is to have as its norm.
    share = jnp.cbrt(jnp.sum(choices**2, axis=1))

    def chosen(v: Array, norm: Array) -> Float[Array, "B size r"]:
        own = jnp.take_along_axis(norm, place, axis=1)
        scale = share / jnp.where(own > 0, own, 1)
        return jnp.take_along_axis(v, place[:, None], axis=2) * scale[:, None]

    u, b, d = (chosen(v, norm) for v, norm in zip(products, norms))
    return u, b, d


def _column_weights(linearization: Linearization) -> list[Float[Array, "B T _g"]]:
    """For every site the root of the norm of each column of each D_t, within its own step."""
    of_steps = [
        [site.derivatives.column_squares() ** 0.25 for site in step.sites]
        for step in linearization.singles
    ]
    dtype = linearization.sites[0].inputs.dtype
    return [jnp.concatenate(parts, axis=1).astype(dtype) for parts in zip(*of_steps)]


def _split_columns(
    weights: Float[Array, "B T g"], rank: int, key: Key
) -> tuple[Float[Array, "B T g r"], Float[Array, "B T g r"]]:
    """e and y with E[e y^T] = 1: e_i = eps / w, y_i = w eps, on i's columns.

    Args:
      weights: w; e and y are 0 where w is.
      rank: r.
      key: of the signs eps.
    """
    inverse = jnp.where(weights > 0, 1 / jnp.where(weights > 0, weights, 1), 0)
    signs = random_signs(key, weights.shape, weights.dtype)
    columns = np.arange(weights.shape[-1])[:, None] % rank == np.arange(rank)
    return (
        jnp.where(columns, (signs * inverse)[..., None], 0),
        jnp.where(columns, (signs * weights)[..., None], 0),
    )


def _equal_norms(vectors: Triple) -> Triple:
    """Vectors [B, size, r] with the same products and equal norms; all 0 where a product is 0."""
    norms = [jnp.linalg.norm(v, axis=1, keepdims=True) for v in vectors]
    present = (norms[0] > 0) & (norms[1] > 0) & (norms[2] > 0)
    norms = [jnp.where(present, x, 1) for x in norms]
    mean = jnp.exp(sum((jnp.log(x) for x in norms[1:]), jnp.log(norms[0])) / 3)
    u, b, d = (jnp.where(present, v * (mean / x), 0) for v, x in zip(vectors, norms))
    return u, b, d
