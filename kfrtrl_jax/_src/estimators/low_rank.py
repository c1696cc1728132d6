"""Linear algebra of an influence matrix that is kept as S + L R^T, see `sketched`.

S is on the bands of D, and L R^T of low rank. Nothing here forms an n x P matrix: all goes by products
of n x n matrices and inner products along the parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from kfrtrl_jax._src.base import Array, Mask, SiteJacobian
from kfrtrl_jax._src.estimators.common import exact_einsum
from kfrtrl_jax._src.matrices import Banded, Index, Matrix, places_of_bands, take, total
from kfrtrl_jax._src.xla import norm


class Band(NamedTuple):
    """The entries of S at one site that belong to one band, one for each column of D.

    Attributes:
      values: [B, m, g].
      places: the k of the S_k that each entry belongs to, [g], static; -1 for none.
    """

    values: Float[Array, "B m g"]
    places: Int[np.ndarray, " g"]


class OffPattern(NamedTuple):
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


class Rest(NamedTuple):
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
    bands: tuple[tuple[Band, ...], ...]
    new: tuple[OffPattern, ...]

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


def _columns(band: Band, count: int) -> Int[np.ndarray, " K"]:
    """The column of D with the band's entry of each of S_1 .. S_K, K = count; -1 for none."""
    column = np.full(count, -1)
    column[band.places[band.places >= 0]] = np.flatnonzero(band.places >= 0)
    return column


def rest(
    sparse: Sequence[Matrix],
    factors: tuple[Float[Array, "B r _m _g"], ...],
    weights: Sequence[Mask | None],
    jacobian: Float[Array, "B n n"],
    carried: Float[Array, "B n r"],
    immediate: Sequence[SiteJacobian],
) -> Rest:
    """What a push moves off S's pattern.

    Args:
      sparse: S before the push, for every site.
      factors: R before the push, for every site that has a rest.
      weights: the weights that each site has, None for all.
      jacobian: J.
      carried: J L.
      immediate: the sites' a_t and D_t.
    """
    found: dict[tuple[int, bytes], int] = {}
    on_pattern: list[np.ndarray] = []
    sites = []
    for s in with_rest(sparse):
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
            bands.append(Band(take(s.values[:, :, band], rows, -1), places))
        sites.append(tuple(bands))
    units = np.asarray([unit for unit, _ in found])
    beyond = jnp.where(np.stack(on_pattern, axis=-1), 0, take(jacobian, units, -1))
    left = jnp.concatenate([carried, beyond], axis=-1)
    return Rest(left, factors, tuple(sites), _off_pattern(sparse, weights, immediate))


def _off_pattern(
    sparse: Sequence[Matrix], weights: Sequence[Mask | None], immediate: Sequence[SiteJacobian]
) -> tuple[OffPattern, ...]:
    """The part of the immediate Jacobians off the pattern of S, for every banded site."""
    if all(site.derivatives.count == 1 for site in immediate):
        return ()  # the pattern is that of a single step's D
    found = []
    banded = [i for i, s in enumerate(sparse) if has_rest(s)]
    for i, s in zip(banded, with_rest(sparse)):
        site, mask = immediate[i], weights[i]
        pattern = places_of_bands(s.columns.array, s.num_columns)
        derivatives = jnp.where(pattern, 0, site.derivatives.dense())
        shape = (s.values.shape[1], s.num_columns)
        present: np.ndarray = np.ones(shape, bool) if mask is None else mask.array
        found.append(OffPattern(site.inputs, derivatives, present))
    return tuple(found)


def has_rest(influence: Matrix) -> bool:
    """Whether L R^T has a part at a site: a dense S is complete, and an empty one has no influence."""
    return isinstance(influence, Banded) and influence.num_bands > 0


def with_rest(sparse: Sequence[Matrix]) -> list[Banded]:
    """The S of the sites at which L R^T has a part."""
    return [s for s in sparse if isinstance(s, Banded) and has_rest(s)]


def squared_sums(
    sparse: Sequence[Matrix],
    left: Float[Array, "B n r"],
    right: tuple[Float[Array, "B r _m _g"], ...],
) -> Float[Array, "B ranks"]:
    """|S + the first k components of L R^T|_F^2 for k = 0 .. r; L is orthonormal."""
    added = squared_norms(left, right)
    for s, factor in zip(with_rest(sparse), right):
        for_components = dataclasses.replace(s, values=s.values[:, None])
        projected = for_components.vector_times(jnp.swapaxes(left, 1, 2)[:, :, None])
        added += 2 * exact_einsum("bxmg,bxmg->bx", projected, factor)
    own = _sum([jnp.sum(s.squared_norm(), axis=-1) for s in sparse])
    return own[:, None] + jnp.pad(jnp.cumsum(added, axis=-1), ((0, 0), (1, 0)))


def squared_norms(
    left: Float[Array, "B n r"], right: tuple[Float[Array, "B r _m _g"], ...]
) -> Float[Array, "B r"]:
    """The squared norms of the components of L R^T; L is orthonormal."""
    none = jnp.zeros(left.shape[::2], jnp.promote_types(left.dtype, jnp.float32))
    return _sum([none, *(exact_einsum("bxmg,bxmg->bx", x, x) for x in right)])


def gain(jacobian: Float[Array, "B n n"], squarings: int) -> Float[Array, " B"]:
    """A number that is at least the largest singular value of each lane's J: rho of `sketched`."""
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
