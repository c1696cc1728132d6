"""The two kinds of matrix that Jacobians are made of: dense ones, and sums of partial permutations.

Sizes are static, so is the place of every non-zero entry; leading axes (lanes) are free, so the same
code serves one lane inside `vmap` and a whole batch.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# A gather is only worth its cost where the indices are not a few runs of consecutive numbers.
_MAX_SLICES = 8
# J times at most one vector for this many rows is cheaper by its factors than by J itself.
_FEW_VECTORS = 16


class Index:
    """A static integer array that hashes and compares by value, as jit asks of static data."""

    def __init__(self, array: np.ndarray):
        self.array = np.ascontiguousarray(array, dtype=np.int64)
        self._key = (self.array.shape, self.array.tobytes())

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and self._key == other._key

    def __repr__(self) -> str:
        return f"Index{self.array.shape}"


def take(x: Array, indices: np.ndarray, axis: int) -> Array:
    """`x` at static `indices` along a (negative) `axis`, zero where an index is -1."""
    indices = np.asarray(indices)
    size = x.shape[axis]
    if len(indices) == size and np.array_equal(indices, np.arange(size)):
        return x
    if not len(indices):
        return jax.lax.slice_in_dim(x, 0, 0, axis=x.ndim + axis)
    steps_on = (indices[1:] == indices[:-1] + 1) & (indices[:-1] >= 0)
    both_absent = (indices[1:] < 0) & (indices[:-1] < 0)
    starts = np.flatnonzero(np.concatenate([[True], ~(steps_on | both_absent)]))
    if len(starts) > _MAX_SLICES:
        shape = [1] * x.ndim
        shape[axis] = len(indices)
        present = jnp.asarray((indices >= 0).reshape(shape))
        return jnp.where(present, jnp.take(x, np.maximum(indices, 0), axis=axis), 0)
    parts = []
    for start, end in zip(starts, [*starts[1:], len(indices)]):
        first, length = int(indices[start]), int(end - start)
        if first < 0:
            shape = list(x.shape)
            shape[axis] = length
            parts.append(jnp.zeros(shape, x.dtype))
        else:
            parts.append(jax.lax.slice_in_dim(x, first, first + length, axis=x.ndim + axis))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis)


def spans(sizes: Iterable[int]) -> list[tuple[int, int]]:
    """(start, stop) of each of some parts that lie one after the other."""
    stops = list(itertools.accumulate(sizes))
    return list(zip([0, *stops], stops))


def places_of_bands(columns: np.ndarray, num_columns: int) -> np.ndarray:
    """Where a matrix of these bands can be non-zero, [rows, num_columns]; see `Banded`."""
    places = np.zeros((columns.shape[1], num_columns), bool)
    for band in columns:
        present = np.flatnonzero(band >= 0)
        places[present, band[present]] = True
    return places


def materialized(x: Array) -> Array:
    """`x`, which XLA writes to memory before anything reads it.

    On CPUs XLA fuses what is cheap to compute into loops that read it many times over, and drops
    optimization barriers before it does; a division counts as dear. The divisor is 1 (NaN where x is),
    which XLA cannot know.
    """
    return x / jnp.where(x == x, 1, x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """A matrix given by all its entries.

    Attributes:
      values: [..., rows, columns].
    """

    values: Array

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.values.shape[-2], self.values.shape[-1]

    def dense(self) -> Array:
        """[..., rows, columns]."""
        return self.values

    def times(self, x: Array) -> Array:
        """The product with x: [..., columns, k], giving [..., rows, k]."""
        return self.values @ x

    def vector_times(self, v: Array) -> Array:
        """The product of v: [..., rows] with this matrix, giving [..., columns]."""
        return jnp.einsum("...r,...rc->...c", v, self.values)

    def squared_norm(self) -> Array:
        """The squared Frobenius norm, [...], accumulated in at least float32."""
        return _sum_of_squares(self.values, (-2, -1))

    def add_to(self, x: Array, scale: Array) -> Array:
        """X + scale * self, for x: [..., rows, columns] and scale: [...]."""
        return x + scale[..., None, None] * self.values

    def rows(self, start: int, stop: int) -> Dense:
        """Some of its rows."""
        return Dense(self.values[..., start:stop, :])

    def kept(self, keep: Array) -> Dense:
        """This matrix, and 0 where keep, [...], is 0: even in place of what is not finite."""
        return Dense(_chosen(self.values, keep))

    def scale_columns(self, s: Array) -> Dense:
        """This matrix times diag(s), s: [..., columns]."""
        return Dense(self.values * s[..., None, :])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Banded:
    """A matrix with at most one entry a row, and at most one a column, in each of a few bands.

    The derivative of one vector by another through element-wise operations is of this kind: a
    diagonal has one band, the derivative by two stacked gates two.

    Attributes:
      values: [..., bands, rows]. A numpy array is of ones, known as such before any step.
      columns: [bands, rows], static: the column of each entry, -1 for none. A row's columns differ.
      num_columns: static.
    """

    values: Array
    columns: Index = dataclasses.field(metadata={"static": True})
    num_columns: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.columns.array.shape[1], self.num_columns

    @property
    def bands(self) -> int:
        """How many entries a row has at the most."""
        return self.columns.array.shape[0]

    def rows_of_columns(self) -> np.ndarray:
        """[bands, columns], static: the row of each column's entry in each band, -1 for none."""
        rows = np.full((self.bands, self.num_columns), -1)
        for band, columns in enumerate(self.columns.array):
            present = np.flatnonzero(columns >= 0)
            rows[band, columns[present]] = present
        return rows

    def dense(self) -> Array:
        """[..., rows, columns]."""
        zero = jnp.zeros((*self.values.shape[:-2], *self.shape), self.values.dtype)
        return self.add_to(zero, jnp.ones(self.values.shape[:-2], self.values.dtype))

    def times(self, x: Array) -> Array:
        """The product with x: [..., columns, k], giving [..., rows, k]."""
        terms = [
            self.values[..., band, :, None] * take(x, columns, axis=-2)
            for band, columns in enumerate(self.columns.array)
        ]
        if not terms:
            return jnp.zeros((*x.shape[:-2], self.shape[0], x.shape[-1]), x.dtype)
        return sum(terms[1:], terms[0])

    def vector_times(self, v: Array) -> Array:
        """The product of v: [..., rows] with this matrix, giving [..., columns]."""
        terms = [
            take(v * self.values[..., band, :], rows, axis=-1)
            for band, rows in enumerate(self.rows_of_columns())
        ]
        if not terms:
            return jnp.zeros((*v.shape[:-1], self.num_columns), v.dtype)
        return sum(terms[1:], terms[0])

    def squared_norm(self) -> Array:
        """The squared Frobenius norm, [...], accumulated in at least float32."""
        return _sum_of_squares(self.values, (-2, -1))

    def add_to(self, x: Array, scale: Array) -> Array:
        """X + scale * self, for x: [..., rows, columns] and scale: [...].

        Touches no entry of x but those of the bands, where nobody else reads x.
        """
        rows, columns = self.shape
        places = np.arange(rows) * columns + self.columns.array
        present = np.flatnonzero(self.columns.array >= 0)
        scaled = (scale[..., None, None] * self.values).astype(x.dtype)
        entries = take(scaled.reshape(*scaled.shape[:-2], self.bands * rows), present, axis=-1)
        flat = x.reshape(*x.shape[:-2], rows * columns)
        added = flat.at[..., places.reshape(-1)[present]].add(
            entries, unique_indices=True, mode="promise_in_bounds"
        )
        return added.reshape(x.shape)

    def rows(self, start: int, stop: int) -> Banded:
        """Some of its rows, without the bands that have no entry there."""
        columns = self.columns.array[:, start:stop]
        bands = np.flatnonzero((columns >= 0).any(axis=1))
        values = take(self.values[..., start:stop], bands, axis=-2)
        return Banded(values, Index(columns[bands]), self.num_columns)

    def kept(self, keep: Array) -> Banded:
        """This matrix, and 0 where keep, [...], is 0: even in place of what is not finite."""
        return dataclasses.replace(self, values=_chosen(self.values, keep))

    def scale_columns(self, s: Array) -> Banded:
        """This matrix times diag(s), s: [..., columns]."""
        if not self.bands:
            return self
        scales = jnp.stack([take(s, columns, axis=-1) for columns in self.columns.array], axis=-2)
        return dataclasses.replace(self, values=self.values * scales)


Matrix = Dense | Banded


def _chosen(values: Array, keep: Array) -> Array:
    return jnp.where(keep[..., None, None] == 0, 0, values)


def _sum_of_squares(x: Array, axes: tuple[int, ...]) -> Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.sum(x * x, axis=axes)


def total(matrices: Sequence[Matrix], rows: int, columns: int) -> Matrix:
    """The sum of matrices of one shape, banded as long as all of them are."""
    banded = [m for m in matrices if isinstance(m, Banded) and m.bands]
    dense = [m for m in matrices if isinstance(m, Dense)]
    if dense:
        x = sum((m.values for m in dense[1:]), dense[0].values)
        for m in banded:
            x = m.add_to(x, jnp.ones(m.values.shape[:-2], m.values.dtype))
        return Dense(x)
    if not banded:
        return Banded(jnp.zeros((0, rows)), Index(np.zeros((0, rows))), columns)
    # Entries at the same place belong in one band: a band's row has one column, each column once.
    merged: list[tuple[np.ndarray, Array]] = []
    for m in banded:
        for band, cols in enumerate(m.columns.array):
            value = m.values[..., band, :]
            for i, (other_columns, other_value) in enumerate(merged):
                if np.array_equal(cols, other_columns):
                    merged[i] = (other_columns, other_value + value)
                    break
            else:
                merged.append((cols, value))
    stacked = np.stack([cols for cols, _ in merged])
    if not _has_distinct_columns(stacked):
        ones = jnp.ones(banded[0].values.shape[:-2], banded[0].values.dtype)
        x = banded[0].dense()
        for m in banded[1:]:
            x = m.add_to(x, ones)
        return Dense(x)
    return Banded(jnp.stack([v for _, v in merged], axis=-2), Index(stacked), columns)


def _has_distinct_columns(columns: np.ndarray) -> bool:
    """Whether no row names a column twice, for columns: [bands, rows]."""
    ordered = np.sort(columns, axis=0)
    return not np.any((ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0))


def compose(left: Matrix, right: Matrix) -> Matrix:
    """The product of two matrices, banded if both are."""
    if isinstance(right, Dense):
        return Dense(left.times(right.values))
    if isinstance(left, Dense):
        rows = right.rows_of_columns()
        terms = [
            take(left.values * right.values[..., None, band, :], rows[band], axis=-1)
            for band in range(right.bands)
        ]
        return (
            Dense(sum(terms[1:], terms[0])) if terms else Dense(left.values[..., :0] @ right.values)
        )
    columns, values = [], []
    for i, outer in enumerate(left.columns.array):
        for j, inner in enumerate(right.columns.array):
            through = np.where(outer >= 0, inner[np.maximum(outer, 0)], -1)
            if np.any(through >= 0):
                value = left.values[..., i, :] * take(right.values[..., j, :], outer, axis=-1)
                columns.append(through)
                values.append(jnp.where(through >= 0, value, 0))
    singles = [
        Banded(value[..., None, :], Index(cols[None]), right.num_columns)
        for cols, value in zip(columns, values)
    ]
    return total(singles, left.shape[0], right.num_columns)


def through_weights(left: Matrix, weights: Array, right: Matrix) -> Matrix:
    """left @ weights.T @ right, for left: rows x g, weights: [m, g] (no lanes), right: m x columns.

    A banded left or right costs element-wise work only: no product is formed.
    """
    if isinstance(right, Dense):
        return compose(left, Dense(jnp.einsum("mg,...mc->...gc", weights, right.values)))
    terms: list[Matrix] = []
    if isinstance(left, Banded) and not left.bands:
        return total(terms, left.shape[0], right.shape[1])
    for band, rows in enumerate(right.rows_of_columns()):
        picked = take(weights, rows, axis=-2)  # [columns, g]
        if isinstance(left, Banded):
            # Written out, or the loop that makes the product would transpose, and derive the values,
            # once for every entry of every lane.
            parts = [
                materialized(take(picked, columns, axis=-1).T) for columns in left.columns.array
            ]
            values = materialized(left.values)
            products = [values[..., i, :, None] * part for i, part in enumerate(parts)]
            product = sum(products[1:], products[0])
        else:
            product = left.values @ picked.T
        if not isinstance(right.values, np.ndarray):
            product = product * take(right.values[..., band, :], rows, axis=-1)[..., None, :]
        terms.append(Dense(product))
    return total(terms, left.shape[0], right.shape[1])


def side_by_side(matrices: Sequence[Matrix]) -> Matrix:
    """[M_1, M_2, ...], all with the same rows."""
    if len(matrices) == 1:
        return matrices[0]
    if not all(isinstance(m, Banded) for m in matrices):
        return Dense(jnp.concatenate([m.dense() for m in matrices], axis=-1))
    banded = [m for m in matrices if isinstance(m, Banded)]
    offsets = np.cumsum([0, *(m.num_columns for m in banded)])
    columns = [
        np.where(m.columns.array >= 0, m.columns.array + offset, -1)
        for m, offset in zip(banded, offsets)
    ]
    values = jnp.concatenate([m.values for m in banded], axis=-2)
    return Banded(values, Index(np.concatenate(columns)), int(offsets[-1]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Product:
    """A term left @ weights.T @ right of a block, not multiplied out.

    Attributes:
      left: n x g.
      weights: [m, g], the same in all lanes; None until they are known.
      right: m x columns.
      block: static: which block of columns it is a term of.
    """

    left: Banded
    weights: Any
    right: Matrix
    block: int = dataclasses.field(metadata={"static": True})

    def multiplied(self) -> Matrix:
        """The term itself, [..., n, columns]."""
        return through_weights(self.left, self.weights, self.right)

    def entries_at(self, rows: np.ndarray) -> Array:
        """The entry of each column at a row of its own, for a banded right: [..., columns]."""
        assert isinstance(self.right, Banded)
        terms = []
        for i, inputs in enumerate(self.right.rows_of_columns()):
            right = take(self.right.values[..., i, :], inputs, axis=-1)
            for j, columns in enumerate(self.left.columns.array):
                outputs = columns[rows]
                present = (inputs >= 0) & (outputs >= 0)
                weights = self.weights[np.maximum(inputs, 0), np.maximum(outputs, 0)]
                left = take(self.left.values[..., j, :], rows, axis=-1)
                terms.append(jnp.where(present, left * weights * right, 0))
        return sum(terms[1:], terms[0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockColumns:
    """A matrix in blocks of columns, one block for each leaf of the carry, each dense or banded.

    Attributes:
      blocks: the blocks from left to right, each with all rows.
      rest: the blocks less the terms in `products`; None if there are no such terms. Who multiplies a
        few vectors needs no more than these two: then XLA leaves out what makes the blocks.
      products: see `rest`.
    """

    blocks: tuple[Matrix, ...]
    rest: tuple[Matrix, ...] | None = None
    products: tuple[Product, ...] = ()

    def times(self, x: Array) -> Array:
        """The product with x: [..., n, k], giving [..., n, k]."""
        if self.rest is not None and x.shape[-1] * _FEW_VECTORS <= x.shape[-2]:
            return self.times_few(x)
        return _times(self.blocks, x)

    def times_blocks(self, blocks: Sequence[Array]) -> tuple[Array, ...]:
        """The product with x, for x and the product in blocks of rows, as many as blocks of columns.

        No block is cut out of x or put into the result.

        Args:
          blocks: [..., columns of a block, k].
        """
        return tuple(
            _sum_of_products(self.rows(start, stop).blocks, blocks)
            for start, stop in spans(x.shape[-2] for x in blocks)
        )

    def times_vector(self, v: Array) -> Array:
        """The product with v: [..., n], giving [..., n]."""
        return self.times(v[..., None])[..., 0]

    def dense(self) -> Array:
        """[..., n, n]."""
        return jnp.concatenate([block.dense() for block in self.blocks], axis=-1)

    def diagonal(self) -> Array:
        """[..., n]."""
        factored = all(isinstance(p.right, Banded) for p in self.products)
        blocks = self.rest if self.rest is not None and factored else self.blocks
        starts = np.cumsum([0, *(block.shape[1] for block in blocks)])
        parts = [
            _entries_at(block, start + np.arange(block.shape[1]))
            for block, start in zip(blocks, starts)
        ]
        if blocks is self.rest:
            for p in self.products:
                rows = starts[p.block] + np.arange(p.right.shape[1])
                parts[p.block] = parts[p.block] + p.entries_at(rows)
        return jnp.concatenate(parts, axis=-1)

    def scaled(self, scale: Array) -> BlockColumns:
        """This matrix times a number for each lane, scale: [...]; 0 times anything is 0."""

        def times_scale(matrix: Any) -> Any:
            s = scale[..., None, None].astype(matrix.values.dtype)
            return dataclasses.replace(matrix, values=jnp.where(s == 0, 0, s * matrix.values))

        if self.rest is None:
            return BlockColumns(tuple(times_scale(block) for block in self.blocks))
        return _multiplied_out(
            tuple(times_scale(block) for block in self.rest),
            tuple(dataclasses.replace(p, left=times_scale(p.left)) for p in self.products),
        )

    def kept(self, keep: Array) -> BlockColumns:
        """This matrix, and 0 where keep, [...], is 0: even in place of what is not finite."""
        if self.rest is None:
            return BlockColumns(tuple(block.kept(keep) for block in self.blocks))
        return _multiplied_out(
            tuple(block.kept(keep) for block in self.rest),
            tuple(
                dataclasses.replace(p, left=p.left.kept(keep), right=p.right.kept(keep))
                for p in self.products
            ),
        )

    def rows(self, start: int, stop: int) -> BlockColumns:
        """Some of its rows."""
        if self.rest is None:
            return BlockColumns(tuple(block.rows(start, stop) for block in self.blocks))
        return _multiplied_out(
            tuple(block.rows(start, stop) for block in self.rest),
            tuple(dataclasses.replace(p, left=p.left.rows(start, stop)) for p in self.products),
        )

    def times_few(self, x: Array) -> Array:
        """As `times`, by the terms instead of the blocks; there must be such terms."""
        assert self.rest is not None
        starts = np.cumsum([0, *(block.shape[1] for block in self.blocks)])
        result = _times(self.rest, x)
        for p in self.products:
            piece = x[..., starts[p.block] : starts[p.block + 1], :]
            inputs = jnp.swapaxes(p.right.times(piece), -1, -2)
            result = result + p.left.times(jnp.swapaxes(inputs @ p.weights, -1, -2))
        return result


def _entries_at(block: Matrix, rows: np.ndarray) -> Array:
    """The entry of each column of a block at a row of its own: [..., columns]."""
    columns = np.arange(len(rows))
    if isinstance(block, Dense):
        return block.values[..., rows, columns]
    present = jnp.asarray(block.columns.array[:, rows] == columns)
    return jnp.sum(jnp.where(present, block.values[..., rows], 0), axis=-2)


def _multiplied_out(rest: tuple[Matrix, ...], products: tuple[Product, ...]) -> BlockColumns:
    """The blocks are sums of the terms, each written once."""
    blocks = [
        total([block, *(p.multiplied() for p in products if p.block == i)], *block.shape)
        for i, block in enumerate(rest)
    ]
    return BlockColumns(tuple(blocks), rest, products)


def _times(blocks: Sequence[Matrix], x: Array) -> Array:
    """The product of blocks of columns with x: [..., n, k]."""
    if len(blocks) == 1:
        return _sum_of_products(blocks, [x])
    columns = spans(block.shape[1] for block in blocks)
    return _sum_of_products(blocks, [x[..., start:stop, :] for start, stop in columns])


def _sum_of_products(blocks: Sequence[Matrix], pieces: Sequence[Array]) -> Array:
    """The sum of the products of blocks of columns with the rows that each multiplies."""
    terms = [
        block.times(piece)
        for block, piece in zip(blocks, pieces)
        if not (isinstance(block, Banded) and block.bands == 0)
    ]
    if not terms:
        x = pieces[0]
        return jnp.zeros((*x.shape[:-2], blocks[0].shape[0], x.shape[-1]), x.dtype)
    return sum(terms[1:], terms[0])
