"""SnAp-1 with a low-rank remainder and a running error bound, after sketched RTRL (SK-RTRL, 2026).

In this variant S is exactly that of SnAp-1, whatever the remainder is. The remainder of a step,
including the one carried on from before, is truncated to its best low-rank approximation. That comes
from a singular value decomposition of n x n inner products, without random sketches. The rank in use
follows the error bound.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    Mask,
    SiteGradients,
    SiteJacobian,
    Structure,
)
from kfrtrl_jax._src.estimators.common import exact_einsum
from kfrtrl_jax._src.estimators.snap import SnapState, on_bands, snap
from kfrtrl_jax._src.matrices import Banded, Index, Matrix, places_of_bands, take, total
from kfrtrl_jax._src.xla import norm


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

    sparse: tuple[Matrix, ...]
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
    if rank < 0:
        raise ValueError(f"rank must be at least 0, got {rank}")
    if squarings < 0:
        raise ValueError(f"squarings must be at least 0, got {squarings}")
    # In a sweep it is a tracer.
    if isinstance(tolerance, (int, float)) and not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be finite and at least 0, got {tolerance}")
    first_order = snap(1)

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
                for s in _with_rest(sparse)
            ),
            rank_in_use=jnp.zeros(b, jnp.int32),
            error_bound=jnp.zeros(b, jnp.promote_types(dtype, jnp.float32)),
            weights=tuple(site.weights_mask for site in structure.sites),
        )

    def push(state: SketchedState, linearization: Linearization, key: Key) -> SketchedState:
        # As one step, so that influence which leaves the pattern between the steps is not lost.
        as_one = linearization._replace(steps=())
        pushed = first_order.push(SnapState(state.sparse), as_one, key).influence
        sparse = tuple(_masked(s, weights) for s, weights in zip(pushed, state.weights))
        if not state.parameter_factors:
            return dataclasses.replace(state, sparse=sparse)
        jacobian = linearization.jacobian.dense()
        carried = linearization.jacobian.times(state.state_factor)
        rest = _rest(state, jacobian, carried, linearization.sites)
        # One call for all lanes: decompositions side by side can block each other on a CPU.
        values, vectors = jnp.linalg.eigh(rest.square())
        r = state.state_factor.shape[-1]
        left = vectors[..., ::-1][..., :r]
        right = rest.transpose_times(left)
        # Small eigenvalues are less accurate than these norms.
        squares = _squared_norms(left, right)
        beyond = jnp.sum(jnp.maximum(values[..., : values.shape[-1] - r], 0), axis=-1)
        smallest_first = jnp.concatenate([beyond[:, None], squares[:, ::-1]], axis=-1)
        dropped = jnp.cumsum(smallest_first, axis=-1)[:, ::-1]  # for every rank in use from 0 to r
        bounds = (_gain(jacobian, squarings) * state.error_bound)[:, None] + jnp.sqrt(dropped)
        used = _least_rank(bounds, _squared_sums(sparse, left, right), tolerance)
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
            gradient + jnp.einsum("br,brmg->mg", weights, next(factors))
            if _has_rest(influence)
            else gradient
            for gradient, influence in zip(
                first_order.pull(SnapState(state.sparse), cotangent), state.sparse
            )
        )

    def diagnostics(state: SketchedState) -> dict[str, Array]:
        sums = _squared_sums(state.sparse, state.state_factor, state.parameter_factors)
        size = jnp.sqrt(jnp.maximum(sums[:, -1], 0))
        relative = state.error_bound / jnp.where(size > 0, size, 1)
        squares = _squared_norms(state.state_factor, state.parameter_factors)
        low_rank = jnp.sqrt(jnp.sum(squares, axis=-1))
        return {
            "error_bound": jnp.mean(state.error_bound),
            "error_bound_max": jnp.max(state.error_bound),
            "relative_error_bound": jnp.mean(jnp.where(size > 0, relative, 0)),
            "low_rank_norm": jnp.mean(low_rank),
            "rank_in_use": jnp.mean(state.rank_in_use.astype(low_rank.dtype)),
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
    if rank < 0:
        raise ValueError(f"rank must be at least 0, got {rank}")
    n, old = state.state_factor.shape[-2:]
    new = min(rank, n)

    def fit(x: Array, axis: int) -> Array:
        padding = [(0, max(new - old, 0) if a == axis else 0) for a in range(x.ndim)]
        return jnp.pad(jax.lax.slice_in_dim(x, 0, min(new, old), axis=axis), padding)

    squares = _squared_norms(state.state_factor, state.parameter_factors)
    lost = jnp.sqrt(jnp.sum(squares[:, new:], axis=-1))
    return dataclasses.replace(
        state,
        state_factor=fit(state.state_factor, 2),
        parameter_factors=tuple(fit(x, 1) for x in state.parameter_factors),
        rank_in_use=jnp.minimum(state.rank_in_use, new),
        error_bound=state.error_bound + lost,
    )


class _Band(NamedTuple):
    """The entries of S at one site that belong to one band, one for each column of D.

    Attributes:
      values: [B, m, g].
      places: the k of the S_k that each entry belongs to, [g], static; -1 for none.
    """

    values: Float[Array, "B m g"]
    places: Int[np.ndarray, " g"]


class _New(NamedTuple):
    """sum_t a_t (x) O_t of one site.

    Attributes:
      inputs: a_t, [B, T, m].
      derivatives: O_t, [B, T, n, g].
      weights: the weights that exist, [m, g].
    """

    inputs: Float[Array, "B T m"]
    derivatives: Float[Array, "B T n g"]
    weights: Bool[np.ndarray, "m g"]

    def square(self) -> Float[Array, "B n n"]:
        """Its product with its own transpose."""
        between = jnp.einsum(
            "btm,bsm,mg->btsg", self.inputs, self.inputs, self.weights.astype(self.inputs.dtype)
        )
        mixed = exact_einsum("btsg,bsng->btng", between, self.derivatives)
        return exact_einsum("btng,btkg->bnk", mixed, self.derivatives)

    def times_transposed(self, x: Float[Array, "B c m g"]) -> Float[Array, "B c g n"]:
        """X sum_t (a_t (x) O_t)^T by columns of the weights."""
        read = exact_einsum("bcmg,btm->bctg", x, self.inputs)
        return exact_einsum("bctg,btng->bcgn", read, self.derivatives)

    def transpose_times(self, x: Float[Array, "B n c"]) -> Float[Array, "B c m g"]:
        """sum_t (a_t (x) O_t)^T x."""
        read = exact_einsum("btng,bnc->btcg", self.derivatives, x)
        return exact_einsum("btm,btcg->bcmg", self.inputs, read) * self.weights


class _Rest(NamedTuple):
    """E = F [R, S_1 .. S_K]^T + sum_t a_t (x) O_t, the influence that a push moves off S's pattern.

    The influence of a weight on unit i spreads to all units that J connects with i. Rows on the
    weight's own pattern stay in S; the others are here. So the first columns of F are J L. The others
    belong to pairs of a unit i and a set of rows that is a column of the pattern and contains i: J's
    column i without those rows. S_k is S's row i, on the columns with that set of rows alone. O_t is
    D_t off the pattern; a single step has none.

    Attributes:
      left: F, [B, n, r + K].
      factors: R, for every banded site [B, r, m, g].
      bands: S_1 .. S_K, for every banded site.
      new: the a_t and O_t of every banded site; empty for a single step.
    """

    left: Float[Array, "B n columns"]
    factors: tuple[Float[Array, "B r _m _g"], ...]
    bands: tuple[tuple[_Band, ...], ...]
    new: tuple[_New, ...]

    def square(self) -> Float[Array, "B n n"]:
        """E E^T, from inner products of the columns of R and the S_k."""
        r = self.factors[0].shape[1]
        carried, beyond = (jnp.swapaxes(x, 1, 2) for x in (self.left[..., :r], self.left[..., r:]))
        low_rank, mixed, own = self._products(beyond.shape[1])
        products = [
            exact_einsum("bxy,byn->bxn", low_rank, carried)
            + exact_einsum("bxk,bkn->bxn", mixed, beyond),
            exact_einsum("bxk,bxn->bkn", mixed, carried) + own.times(beyond),
        ]
        square = exact_einsum("bnk,bkl->bnl", self.left, jnp.concatenate(products, axis=1))
        for factor, bands, new in zip(self.factors, self.bands, self.new):
            of_bands = jnp.zeros((*beyond.shape[:2], new.derivatives.shape[2]), square.dtype)
            for band in bands:
                by_column = new.times_transposed(band.values[:, None])[:, 0]
                of_bands += take(by_column, _columns(band, beyond.shape[1]), -2)
            of_rank = jnp.sum(new.times_transposed(factor), axis=2)
            both = jnp.concatenate([of_rank, of_bands], axis=1)
            mixed = exact_einsum("bnk,bkl->bnl", self.left, both)
            square += mixed + jnp.swapaxes(mixed, 1, 2) + new.square()
        return square

    def _products(self, count: int) -> tuple[Float[Array, "B r r"], Float[Array, "B r K"], Matrix]:
        """R^T R, R^T S_k^T, and S_k S_l^T, K x K, for K = count."""
        low_rank, mixed, own = [], [], []
        for factor, bands in zip(self.factors, self.bands):
            flat = jax.lax.collapse(factor, 2)
            low_rank.append(exact_einsum("bxp,byp->bxy", flat, flat))
            for band in bands:
                column = _columns(band, count)
                mixed.append(take(exact_einsum("bxmg,bmg->bxg", factor, band.values), column, -1))
                for other in bands:
                    partner = np.where(column >= 0, other.places[column], -1)
                    if np.any(partner >= 0):
                        product = exact_einsum("bmg,bmg->bg", band.values, other.values)
                        values = take(product, column, -1)[:, None]
                        own.append(Banded(values, Index(partner[None]), count))
        return _sum(low_rank), _sum(mixed), total(own, count, count)

    def transpose_times(self, x: Float[Array, "B n c"]) -> tuple[Float[Array, "B c _m _g"], ...]:
        """E^T x for every banded site."""
        r = self.factors[0].shape[1]
        weights = exact_einsum("bnk,bnc->bck", self.left, x)
        result = []
        for factor, bands in zip(self.factors, self.bands):
            terms = [exact_einsum("bcx,bxmg->bcmg", weights[..., :r], factor)]
            for band in bands:
                weight = take(weights[..., r:], band.places, -1)
                terms.append(weight[:, :, None] * band.values[:, None])
            result.append(_sum(terms))
        for i, new in enumerate(self.new):
            result[i] += new.transpose_times(x)
        return tuple(result)


def _columns(band: _Band, count: int) -> Int[np.ndarray, " K"]:
    """The column of D with the band's entry of each of S_1 .. S_K, K = count; -1 for none."""
    column = np.full(count, -1)
    column[band.places[band.places >= 0]] = np.flatnonzero(band.places >= 0)
    return column


def _rest(
    state: SketchedState,
    jacobian: Float[Array, "B n n"],
    carried: Float[Array, "B n r"],
    immediate: Sequence[SiteJacobian],
) -> _Rest:
    """The remainder E of a push, from J, J L and the sites' a_t and D_t."""
    found: dict[tuple[int, bytes], int] = {}
    on_pattern: list[np.ndarray] = []
    sites = []
    for s in _with_rest(state.sparse):
        all_rows = s.rows_of_columns()
        pattern = places_of_bands(s.columns.array, s.num_columns)
        bands = []
        for band, rows in enumerate(all_rows):
            places = np.full(len(rows), -1)
            for column in np.flatnonzero(rows >= 0):
                key = (int(rows[column]), pattern[:, column].tobytes())
                if key not in found:
                    found[key] = len(found)
                    on_pattern.append(pattern[:, column])
                places[column] = found[key]
            bands.append(_Band(take(s.values[:, :, band], rows, -1), places))
        sites.append(tuple(bands))
    units = np.asarray([unit for unit, _ in found])
    beyond = jnp.where(np.stack(on_pattern, axis=-1), 0, take(jacobian, units, -1))
    left = jnp.concatenate([carried, beyond], axis=-1)
    return _Rest(left, state.parameter_factors, tuple(sites), _new(state, immediate))


def _new(state: SketchedState, immediate: Sequence[SiteJacobian]) -> tuple[_New, ...]:
    """The part of the immediate Jacobians off the pattern of S, for every banded site."""
    if all(site.derivatives.count == 1 for site in immediate):
        return ()  # the pattern is that of a single step's D
    found = []
    with_rest = [i for i, s in enumerate(state.sparse) if _has_rest(s)]
    for i, s in zip(with_rest, _with_rest(state.sparse)):
        site, weights = immediate[i], state.weights[i]
        pattern = places_of_bands(s.columns.array, s.num_columns)
        derivatives = jnp.where(pattern, 0, site.derivatives.dense())
        shape = (s.values.shape[1], s.num_columns)
        present: np.ndarray = np.ones(shape, bool) if weights is None else weights.array
        found.append(_New(site.inputs, derivatives, present))
    return tuple(found)


def _has_rest(influence: Matrix) -> bool:
    """Whether L R^T has a part at a site: a dense S is complete, and an empty one has no influence."""
    return isinstance(influence, Banded) and influence.num_bands > 0


def _with_rest(sparse: Sequence[Matrix]) -> list[Banded]:
    return [s for s in sparse if isinstance(s, Banded) and _has_rest(s)]


def _masked(influence: Matrix, weights: Mask | None) -> Matrix:
    """The influence without absent weights, which would use up rank in L R^T."""
    if weights is None:
        return influence
    if isinstance(influence, Banded):
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


def _squared_sums(
    sparse: Sequence[Matrix],
    left: Float[Array, "B n r"],
    right: tuple[Float[Array, "B r _m _g"], ...],
) -> Float[Array, "B ranks"]:
    """|S + the first k components of L R^T|_F^2 for k = 0 .. r; L is orthonormal."""
    added = _squared_norms(left, right)
    for s, factor in zip(_with_rest(sparse), right):
        for_components = dataclasses.replace(s, values=s.values[:, None])
        projected = for_components.vector_times(jnp.swapaxes(left, 1, 2)[:, :, None])
        added += 2 * exact_einsum("bxmg,bxmg->bx", projected, factor)
    own = _sum([jnp.sum(s.squared_norm(), axis=-1) for s in sparse])
    return own[:, None] + jnp.pad(jnp.cumsum(added, axis=-1), ((0, 0), (1, 0)))


def _squared_norms(
    left: Float[Array, "B n r"], right: tuple[Float[Array, "B r _m _g"], ...]
) -> Float[Array, "B r"]:
    """The squared norms of the components of L R^T; L is orthonormal."""
    none = jnp.zeros(left.shape[::2], jnp.promote_types(left.dtype, jnp.float32))
    return _sum([none, *(exact_einsum("bxmg,bxmg->bx", x, x) for x in right)])


def _gain(jacobian: Float[Array, "B n n"], squarings: int) -> Float[Array, " B"]:
    """rho of `sketched`: at least the largest singular value of each lane's J."""
    size = jnp.abs(jacobian).astype(jnp.promote_types(jacobian.dtype, jnp.float32))
    columns, rows = (jnp.max(jnp.sum(size, axis=axis), axis=-1) for axis in (-2, -1))
    schatten = norm(jacobian)
    power = _normalized(jacobian, schatten)
    for k in range(squarings):
        # The norm of order 2^(k + 2) is that of (J^T J)^(2^k) to the power of 1 / 2^(k + 1).
        power = exact_einsum("bki,bkj->bij", power, power)
        size = norm(power)
        power = _normalized(power, size)
        schatten *= size ** (0.5 ** (k + 1))
    return jnp.minimum(schatten, jnp.sqrt(columns * rows))


def _normalized(x: Float[Array, "B n n"], size: Float[Array, " B"]) -> Float[Array, "B n n"]:
    """x / size, 0 where size is 0."""
    return x / jnp.where(size > 0, size, 1)[:, None, None]


def _sum(terms: Sequence[Array]) -> Array:
    return sum(terms[1:], terms[0])
