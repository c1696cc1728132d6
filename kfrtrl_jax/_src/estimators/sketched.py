"""SnAp-1 with a low-rank remainder and a running error bound, after sketched RTRL (SK-RTRL, 2026).

In this variant S is exactly that of SnAp-1, whatever the remainder is. The remainder of a step,
including the one carried on from before, is truncated to its best low-rank approximation. That comes
from a singular value decomposition of n x n inner products, without random sketches. The rank in use
follows the error bound.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    Mask,
    SiteGradients,
    Structure,
)
from kfrtrl_jax._src.estimators import low_rank
from kfrtrl_jax._src.estimators.on_pattern import Everywhere, OnBands, on_bands


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SketchedState:
    """The influence matrix as S + L R^T, and a bound on its error.

    Attributes:
      sparse: S. For every site and each of its inputs j, ds/dW_j, n x g, on the bands of D, values
        [B, m, bands, n]; or all of ds/dW_j if D is dense, [B, m, n, g].
      state_factor: L, [B, n, r]: orthonormal columns, the leading one first; unused columns are 0.
      parameter_factors: R, [B, r, m, g] for every site with a banded D other than 0; unused rows are 0.
      rank_in_use: [B], integers.
      error_bound: e >= |G - S - L R^T|_F, [B].
      weights: the weights that each site has, None for all; static.
    """

    sparse: tuple[OnBands | Everywhere, ...]
    state_factor: Float[Array, "B n r"]
    parameter_factors: tuple[Float[Array, "B r _m _g"], ...]
    rank_in_use: Int[Array, " B"]
    error_bound: Float[Array, " B"]
    weights: tuple[Mask | None, ...] = dataclasses.field(metadata={"static": True})


def sketched(rank: int, tolerance: float = 0.0, squarings: int = 0) -> InfluenceEstimator:
    """S as in `snap(1)`; L R^T <- the best low-rank fit to E = J (S + L R^T) - (J S on S's pattern).

    Steps that are pushed at once count as one step: nothing leaves the pattern of S between them, and E
    also contains the part of I off the pattern.

    The error obeys |G - S - L R^T|_F <= e with e <- rho e + eta. Here eta is the norm of what the
    truncation drops, and rho = min(|J|_F, (|J|_1 |J|_inf)^1/2) is at least J's largest singular value.
    A lane that starts anew has rho = 0. The bound ignores rounding errors; those of eta are of the
    order of |E|_F times the square root of the machine precision. If rho stays above 1, as in most
    networks without `squarings`, the bound is useless after a few steps; it saturates at the largest
    number of its type.

    Biased, without noise. It equals `snap(1)` at rank 0 and `rtrl` at rank n. For P parameters and b
    bands, O(m n b + (n + P) r) memory, O(n^2 b) more during a step, and O(n^3 b + P r (r + b)) work per
    lane. A site with a dense D keeps all n m g entries in S, whatever its masks, and none in L R^T.

    Args:
      rank: r, the largest rank in use; n always suffices.
      tolerance: if above 0, each lane uses the least rank with e <= tolerance |S + L R^T|_F, or r if
        there is none.
      squarings: s. The Schatten norm of order 2^(s + 1) takes the place of |J|_F, that of order 2. It
        exceeds J's largest singular value by a factor of at most n^(1 / 2^(s + 1)) and costs s more
        products of n x n matrices. With 5 the bound is nearly as tight as it can be.

    Raises:
      ValueError: if rank, tolerance or squarings is negative, or tolerance is not finite.
    """
    bounds.require("[0, inf)", rank=rank, squarings=squarings, tolerance=tolerance)

    def init(structure: Structure) -> SketchedState:
        b, n, dtype = structure.batch_size, structure.state_size, structure.dtype
        r = min(rank, n)
        # Masks are left out: S needs the bands of D and no more, as L R^T holds the rest.
        sparse = tuple(on_bands(structure, site) for site in structure.sites)
        return SketchedState(
            sparse=sparse,
            state_factor=jnp.zeros((b, n, r), dtype),
            parameter_factors=tuple(
                jnp.zeros((b, r, s.values.shape[1], s.num_columns), dtype)
                for s in low_rank.with_rest(sparse)
            ),
            rank_in_use=jnp.zeros(b, jnp.int32),
            error_bound=jnp.zeros(b, jnp.promote_types(dtype, jnp.float32)),
            weights=tuple(site.weights_mask for site in structure.sites),
        )

    def push(state: SketchedState, linearization: Linearization, key: Key) -> SketchedState:
        del key
        # As one step, so that influence which leaves the pattern between the steps is not lost.
        as_one = linearization._replace(steps=())
        pushed = [s.push(as_one, site) for site, s in enumerate(state.sparse)]
        sparse = tuple(_masked(s, weights) for s, weights in zip(pushed, state.weights))
        if not state.parameter_factors:
            return dataclasses.replace(state, sparse=sparse)
        jacobian = linearization.jacobian.dense()
        carried = linearization.jacobian.times(state.state_factor)
        rest = low_rank.rest(
            state.sparse,
            state.parameter_factors,
            state.weights,
            jacobian,
            carried,
            linearization.sites,
        )
        # One call for all lanes: decompositions side by side can block each other on a CPU.
        values, vectors = jnp.linalg.eigh(rest.square())
        r = state.state_factor.shape[-1]
        left = vectors[..., ::-1][..., :r]
        right = rest.transpose_times(left)
        # Small eigenvalues are less accurate than these norms.
        squares = low_rank.squared_norms(left, right)
        beyond = jnp.sum(jnp.maximum(values[..., : values.shape[-1] - r], 0), axis=-1)
        smallest_first = jnp.concatenate([beyond[:, None], squares[:, ::-1]], axis=-1)
        dropped = jnp.cumsum(smallest_first, axis=-1)[:, ::-1]  # for every rank in use from 0 to r
        carried_bound = low_rank.gain(jacobian, squarings) * state.error_bound
        bounds = carried_bound[:, None] + jnp.sqrt(dropped)
        used = _least_rank(bounds, low_rank.squared_sums(sparse, left, right), tolerance)
        in_use = jnp.arange(r) < used[:, None]
        dtype = state.state_factor.dtype
        bound = jnp.take_along_axis(bounds, used[:, None], axis=1)[:, 0]
        return SketchedState(
            sparse=sparse,
            state_factor=jnp.where(in_use[:, None], left, 0).astype(dtype),
            parameter_factors=tuple(
                jnp.where(in_use[:, :, None, None], x, 0).astype(dtype) for x in right
            ),
            rank_in_use=used,
            error_bound=jnp.minimum(bound, jnp.finfo(bound.dtype).max),
            weights=state.weights,
        )

    def pull(state: SketchedState, cotangent: Float[Array, "B n"]) -> SiteGradients:
        weights = jnp.einsum("bn,bnr->br", cotangent, state.state_factor)
        factors = iter(state.parameter_factors)
        return tuple(
            s.pull(cotangent) + jnp.einsum("br,brmg->mg", weights, next(factors))
            if low_rank.has_rest(s)
            else s.pull(cotangent)
            for s in state.sparse
        )

    def diagnostics(state: SketchedState) -> dict[str, Array]:
        sums = low_rank.squared_sums(state.sparse, state.state_factor, state.parameter_factors)
        size = jnp.sqrt(jnp.maximum(sums[:, -1], 0))
        relative = state.error_bound / jnp.where(size > 0, size, 1)
        squares = low_rank.squared_norms(state.state_factor, state.parameter_factors)
        low_rank_norm = jnp.sqrt(jnp.sum(squares, axis=-1))
        return {
            "error_bound": jnp.mean(state.error_bound),
            "error_bound_max": jnp.max(state.error_bound),
            "relative_error_bound": jnp.mean(jnp.where(size > 0, relative, 0)),
            "low_rank_norm": jnp.mean(low_rank_norm),
            "rank_in_use": jnp.mean(state.rank_in_use.astype(low_rank_norm.dtype)),
        }

    return InfluenceEstimator(init, push, pull, diagnostics)


def resized(state: SketchedState, rank: int) -> SketchedState:
    """The state resized to another rank, with which any `sketched` estimator can continue.

    Use it between two compiled runs, as it changes shapes. The leading components stay; the bound grows
    by the norm of the components that are dropped.

    Args:
      state: of any `sketched` estimator.
      rank: the new r; at most n is used.

    Raises:
      ValueError: if rank is negative.
    """
    bounds.require("[0, inf)", rank=rank)
    n, old = state.state_factor.shape[-2:]
    new = min(rank, n)

    def fit(x: Array, axis: int) -> Array:
        padding = [(0, max(new - old, 0) if a == axis else 0) for a in range(x.ndim)]
        return jnp.pad(jax.lax.slice_in_dim(x, 0, min(new, old), axis=axis), padding)

    squares = low_rank.squared_norms(state.state_factor, state.parameter_factors)
    lost = jnp.sqrt(jnp.sum(squares[:, new:], axis=-1))
    return dataclasses.replace(
        state,
        state_factor=fit(state.state_factor, 2),
        parameter_factors=tuple(fit(x, 1) for x in state.parameter_factors),
        rank_in_use=jnp.minimum(state.rank_in_use, new),
        error_bound=state.error_bound + lost,
    )


def _masked(influence: OnBands | Everywhere, weights: Mask | None) -> OnBands | Everywhere:
    """The influence without absent weights, which would use up rank in L R^T."""
    if weights is None:
        return influence
    if isinstance(influence, OnBands):
        present = weights.array[:, influence.columns.array]
    else:
        present = weights.array[:, None]
    return dataclasses.replace(influence, values=jnp.where(present, influence.values, 0))


def _least_rank(
    bounds: Float[Array, "B ranks"], squared_sizes: Float[Array, "B ranks"], tolerance: float
) -> Int[Array, " B"]:
    """The least k with bound_k <= tolerance |G~_k|, or r if there is none."""
    within = bounds <= tolerance * jnp.sqrt(jnp.maximum(squared_sizes, 0))
    within &= tolerance > 0
    last = bounds.shape[-1] - 1
    least = jnp.where(jnp.any(within, axis=-1), jnp.argmax(within, axis=-1), last)
    return least.astype(jnp.int32)
