"""Optimal Kronecker-sum approximation (Benzing, Gauy, Mujika, Martinsson and Steger, 2019).

arXiv:1902.03993. A sum of p Kronecker products is replaced by one of r, at random and without
bias, see `reduction`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    SiteGradients,
    SiteJacobian,
    Structure,
)
from kfrtrl_jax._src.estimators import reduction
from kfrtrl_jax._src.estimators.common import (
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
      state_factors: A_1 .. A_r, for every site [B, n, g, r]: J and cotangents are multiplied by one
        matrix of n rows a lane, which takes them much less time than r of them.
    """

    input_factors: tuple[Array, ...]
    state_factors: tuple[Array, ...]


def ok(rank: int) -> InfluenceEstimator:
    """The best unbiased sum of r products for sum_i u_i (x) J A_i + sum_t a_t (x) D_t, at every push.

    Pushed at every step (T = 1) no unbiased reduction to r products has a smaller error, for any draw.
    Pushed once in T steps it costs a T-th of the decompositions, inner products and products, and the
    error is as small on average over draws.

    Unbiased; O(r n g) memory and O(r n^2 g + r^2 n g + r^3) work per lane, site and push. A site whose
    input is the constant 1 has m = 1 and is stored exactly, as one product with u = 1.

    Its init raises UnsupportedCellError for a cell with parameters in no product or sum with data.

    Args:
      rank: r. With r = 1 it takes the place of `kf_rtrl`, with no more noise.

    Raises:
      ValueError: if rank is less than 1.
    """
    bounds.require("[1, inf)", rank=rank)

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
                jnp.zeros((b, n, site.output_size, r), dtype)
                for site, r in zip(structure.sites, ranks)
            ),
        )

    def push(state: OkState, linearization: Linearization, key: Key) -> OkState:
        sums = [
            _Sum(u, _carry(linearization.jacobian, a), site)
            for u, a, site in zip(state.input_factors, state.state_factors, linearization.sites)
        ]
        factored = [s for s in sums if s.site.inputs.shape[-1] > 1]
        mixes = iter(_mixes(factored, key))
        pairs = [s.mixed(*next(mixes)) if s.site.inputs.shape[-1] > 1 else s.exact() for s in sums]
        return OkState(tuple(u for u, _ in pairs), tuple(a for _, a in pairs))

    def pull(state: OkState, cotangent: Array) -> SiteGradients:
        return tuple(
            jnp.einsum("brm,bgr->mg", u, _pull(cotangent, a))
            for u, a in zip(state.input_factors, state.state_factors)
        )

    def diagnostics(state: OkState) -> dict[str, Array]:
        return factor_norms(input_factors=state.input_factors, state_factors=state.state_factors)

    return InfluenceEstimator(init, push, pull, diagnostics)


def _carry(jacobian: BlockColumns, factors: Array) -> Array:
    """J A_i for all i, for factors [B, n, g, r]."""
    return jacobian.times(factors.reshape(*factors.shape[:2], -1)).reshape(factors.shape)


def _pull(cotangent: Array, factors: Array) -> Array:
    """c^T A_i for all i, [B, g, r], for factors [B, n, g, r]."""
    b, n, g, r = factors.shape
    return jnp.einsum("bn,bnk->bk", cotangent, factors.reshape(b, n, -1)).reshape(b, g, r)


class _Sum(NamedTuple):
    """The r + T products of one site: sum_i u_i (x) J A_i + sum_t a_t (x) D_t.

    Attributes:
      inputs: u, [B, r, m].
      carried: J A, [B, n, g, r].
      site: a_t and D_t.
    """

    inputs: Array
    carried: Array
    site: SiteJacobian

    def all_inputs(self) -> Array:
        """u_1 .. u_r, a_1 .. a_T: [B, r + T, m]."""
        return jnp.concatenate([self.inputs, self.site.inputs], axis=1)

    def grams(self) -> tuple[Array, Array]:
        """The inner products of the u_i and a_t, and of the J A_i and D_t, both [B, r + T, r + T]."""
        inputs = self.all_inputs()
        # Flat, as XLA multiplies over one axis much faster than over two.
        carried, new = self._flat(), self.site.derivatives.dense()
        new = new.reshape(*new.shape[:2], -1)
        square = exact_einsum("bki,bkj->bij", carried, carried)
        border = exact_einsum("btk,bki->bti", new, carried)
        corner = exact_einsum("bsk,btk->bst", new, new)
        return (
            exact_einsum("bim,bjm->bij", inputs, inputs),
            jnp.block([[square, jnp.swapaxes(border, 1, 2)], [border, corner]]),
        )

    def mixed(self, mix_inputs: Array, mix_states: Array) -> tuple[Array, Array]:
        """The new pairs, for mix_inputs and mix_states [B, r, r + T]."""
        dtype, rank = self.inputs.dtype, self.inputs.shape[1]
        old, new = mix_states[..., :rank], mix_states[..., rank:]
        states = exact_einsum("bkj,bij->bki", self._flat(), old).reshape(self.carried.shape)
        return (
            exact_einsum("bij,bjm->bim", mix_inputs, self.all_inputs()).astype(dtype),
            self.site.derivatives.add_to_each(states.astype(dtype), new.astype(dtype)),
        )

    def exact(self) -> tuple[Array, Array]:
        """The new pair where m = 1: there is only one direction."""
        scales = jnp.swapaxes(self.site.inputs, 1, 2)
        return self.inputs, self.site.derivatives.add_to_each(self.carried, scales)

    def _flat(self) -> Array:
        """The J A_i, [B, n g, r]."""
        return self.carried.reshape(len(self.carried), -1, self.carried.shape[-1])


def _mixes(sums: list[_Sum], key: Key) -> Iterator[tuple[Array, Array]]:
    """The mixing matrices of each site, computed in one call per number of terms.

    Decompositions side by side can block each other on a CPU.
    """
    result: dict[int, tuple[Array, Array]] = {}
    counts = sorted({s.site.derivatives.count for s in sums})
    keys = [key] if len(counts) == 1 else list(jax.random.split(key, len(counts)))
    for count, k in zip(counts, keys):
        places = [i for i, s in enumerate(sums) if s.site.derivatives.count == count]
        grams = [sums[i].grams() for i in places]
        input_grams, state_grams = (jnp.stack(g) for g in zip(*grams))
        lanes = input_grams.shape[:2]
        if count == 1:
            signs = random_signs(k, input_grams.shape[:-1], input_grams.dtype)
            of_lane = reduction.by_signs
            mixes = jax.vmap(jax.vmap(of_lane))(input_grams, state_grams, signs)
        else:
            rank = input_grams.shape[-1] - count
            uniform = jax.random.uniform(k, lanes, input_grams.dtype)

            def sampled(a: Array, b: Array, u: Array, rank: int = rank) -> tuple[Array, Array]:
                return reduction.by_sampling(a, b, u, rank)

            mixes = jax.vmap(jax.vmap(sampled))(input_grams, state_grams, uniform)
        result.update(zip(places, zip(*mixes)))
    return iter(result[i] for i in range(len(sums)))
