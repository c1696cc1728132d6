"""T matrices of one shape, in groups that are alike: the derivatives of a site's T uses."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.matrices.banded import Banded
from kfrtrl_jax._src.matrices.block_rows import BlockRows
from kfrtrl_jax._src.matrices.composed import MAX_STRETCHES, Composed, stretch
from kfrtrl_jax._src.matrices.dense import Dense
from kfrtrl_jax._src.matrices.index import runs, take
from kfrtrl_jax._src.matrices.shared import Shared
from kfrtrl_jax._src.xla import sum_of_first

Array = jax.Array
Group = Dense | Banded | BlockRows | Composed | Shared


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Terms:
    """Matrices D_1 .. D_T, n x g, for every lane.

    Attributes:
      groups: one or more, each a matrix of [*terms, B, n, g]; T counts the terms of all of them.
    """

    groups: tuple[Group, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, g)."""
        return self.groups[0].shape

    @property
    def counts(self) -> list[int]:
        """How many terms each group has."""
        return [math.prod(group.lead[:-1]) for group in self.groups]

    @property
    def count(self) -> int:
        """T."""
        return sum(self.counts)

    def dense(self) -> Array:
        """[B, T, n, g]."""
        composed = [group.right for group in self.groups if isinstance(group, Composed)]
        if not composed:
            return self._side_by_side(lambda group: group.dense())
        length = stretch(composed)

        def in_stretches(group: Group) -> Array:
            if isinstance(group, Composed):
                return group.in_stretches(length)
            return group.dense().reshape(*group.lead, group.shape[0], -1, length)

        parts = self._side_by_side(in_stretches)
        return parts.reshape(*parts.shape[:3], self.shape[1])

    def squared_norms(self) -> Array:
        """Squared Frobenius norms, [B, T], accumulated in at least float32."""
        return self._side_by_side(lambda group: group.squared_norm())

    def column_squares(self) -> Array:
        """The squared norm of each column, [B, T, g], accumulated in at least float32."""
        return self._side_by_side(lambda group: group.column_squares())

    def row_squares(self) -> Array:
        """The squared norm of each row, [B, T, n], accumulated in at least float32."""
        return self._side_by_side(lambda group: group.row_squares())

    def entries_at(self, rows: np.ndarray, columns: np.ndarray) -> Array:
        """Entries at static rows and columns of one shape, 0 where either is -1: [B, T, *shape]."""
        rows, columns = np.broadcast_arrays(rows, columns)
        return self._side_by_side(lambda group: group.entries_at(rows, columns))

    def times(self, x: Array) -> Array:
        """D_t x_t for each t, for x: [B, T, g, k], giving [B, T, n, k]."""
        pieces = iter(self._split(x))
        return self._side_by_side(lambda group: group.times(next(pieces)))

    def vector_times(self, v: Array) -> Array:
        """v^T D_t for each t, for v: [B, n], giving [B, T, g]."""
        return self._side_by_side(lambda group: group.vector_times(v))

    def add_to(self, x: Array, scales: Array) -> Array:
        """X + sum_t scale_t D_t, for x: [B, n, g] and scales: [B, T].

        Where all D_t are banded no entry of x is touched but those of the bands.
        """
        pairs = list(zip(self.groups, self._split(scales)))
        composed = [group.scaled(s) for group, s in pairs if isinstance(group, Composed)]
        if composed:
            x = x + _sum_of_composed(composed)
        for group, s in pairs:
            if not isinstance(group, Composed):
                x = _add_to(x, group, s)
        return x

    def add_to_each(self, x: Array, scales: Array) -> Array:
        """X_i + sum_t scale_it D_t for each i, for x: [B, n, g, r] and scales: [B, r, T]."""
        group = self.groups[0]
        if self.count == 1 and isinstance(group, Banded):
            values = group.values.reshape(group.values.shape[-3:])
            return dataclasses.replace(group, values=values).add_to_each(x, scales[..., 0])
        terms = self.dense().reshape(len(x), self.count, -1)
        return x + jnp.einsum("btk,brt->bkr", terms, scales).reshape(x.shape)

    def rows(self, start: int, stop: int) -> Terms:
        """Some of their rows."""
        return Terms(tuple(group.rows(start, stop) for group in self.groups))

    def columns_at(self, places: np.ndarray) -> Terms:
        """Their columns at static places, 0 for -1; none stands at two."""
        return Terms(tuple(group.columns_at(places) for group in self.groups))

    def kept(self, keep: Array) -> Terms:
        """The same, and 0 in the lanes where keep, [B], is 0: even in place of what is not finite."""
        return Terms(tuple(g.kept(jnp.broadcast_to(keep, g.lead)) for g in self.groups))

    def scaled(self, scales: Array) -> Terms:
        """scale_t D_t for each t, for scales: [B, T]."""
        pairs = zip(self.groups, self._split(scales))
        return Terms(tuple(group.scaled(s) for group, s in pairs))

    def _split(self, x: Array) -> list[Array]:
        """What belongs to each group of x: [B, T, ...], each [*terms, B, ...]."""
        stops = np.cumsum(self.counts)
        return [
            jnp.moveaxis(x[:, stop - count : stop], 1, 0).reshape(*group.lead, *x.shape[2:])
            for group, count, stop in zip(self.groups, self.counts, stops)
        ]

    def _side_by_side(self, of_group: Callable[[Group], Array]) -> Array:
        """[B, T, ...] of what is [*terms, B, ...] for each group."""
        parts = []
        for group in self.groups:
            part, axes = of_group(group), len(group.lead)
            flat = part.reshape(math.prod(group.lead[:-1]), *part.shape[axes - 1 :])
            parts.append(jnp.moveaxis(flat, 0, 1))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def stacked(groups: Sequence[Group]) -> tuple[Group, ...]:
    """The same terms in as few groups: those that follow one another and are alike are one."""

    def kind(group: Group) -> object:
        if isinstance(group, Banded):
            return group.columns
        return Dense if isinstance(group, Dense) else id(group)

    found: list[Group] = []
    for _, alike in itertools.groupby(groups, kind):
        first, *others = alike
        if others:
            first = jax.tree.map(lambda *x: jnp.concatenate(x), first, *others)
        found.append(first)
    return tuple(found)


def single(matrix: Dense | Banded) -> Terms:
    """One matrix [B, n, g] as the only term."""
    return Terms((dataclasses.replace(matrix, values=matrix.values[None]),))


def _add_to(x: Array, group: Dense | Banded | BlockRows | Shared, scales: Array) -> Array:
    """X + the sum of a group's terms, for scales [*terms, B]."""
    if isinstance(group, BlockRows):
        pairs = zip(group.parts, group.spans)
        return jnp.concatenate(
            [_add_to(x[:, slice(*rows)], part, scales) for part, rows in pairs], axis=1
        )
    if isinstance(group, Shared):
        return group.add_to(x, scales)
    if math.prod(group.lead[:-1]) == 1:
        one = dataclasses.replace(group, values=group.values.reshape(group.values.shape[-3:]))
        return one.add_to(x, scales.reshape(-1))
    if isinstance(group, Dense):
        values = _flat(group.values)
        return x + jnp.einsum("tb,tbng->bng", scales.reshape(values.shape[:2]), values)
    total = sum_of_first(_flat(group.scaled(scales).values))
    ones = jnp.ones(total.shape[:1], total.dtype)
    return dataclasses.replace(group, values=total).add_to(x, ones)


def _sum_of_composed(groups: Sequence[Composed]) -> Array:
    """The sum of all terms, [B, n, g]: each of their columns in one pass over the columns of all Q."""
    factors = []
    for group in groups:
        left, right = group.left, group.right
        # Several banded factors of one dense one are added up first.
        for axis in range(left.ndim - 3):
            if left.shape[axis] == 1 < right.values.shape[axis]:
                sums = jnp.sum(right.values, axis=axis, keepdims=True)
                right = dataclasses.replace(right, values=sums)
        values = _flat(right.values)
        for band, rows in enumerate(right.rows_of_columns()):
            factors += [(x, v[:, band], rows) for x, v in zip(_flat(left), values)]
    shape, columns = groups[0].left.shape[-3:-1], groups[0].right.num_columns
    parts = []
    for start, stop in _stretches([rows for _, _, rows in factors], columns):
        products = []
        for left, values, rows in factors:
            here = rows[start:stop]
            if np.any(here >= 0):
                products.append(take(left, here, -1) * take(values, here, -1)[:, None])
        nothing = jnp.zeros((*shape, stop - start), groups[0].left.dtype)
        parts.append(sum(products[1:], products[0]) if products else nothing)
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def _stretches(indices: Sequence[np.ndarray], size: int) -> list[tuple[int, int]]:
    """(start, stop) of the longest stretches in which each of some indices is a run or absent."""
    breaks = {0, size}
    for index in indices:
        breaks.update(np.cumsum([length for _, length in runs(index)]).tolist())
    if len(breaks) > MAX_STRETCHES:
        breaks = {0, size}
    stops = sorted(breaks)
    return list(itertools.pairwise(stops))


def _flat(x: Array) -> Array:
    """The axes of terms as one: [*terms, B, ., .] -> [T, B, ., .]."""
    return x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:])
