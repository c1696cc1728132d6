"""Jacobians by the state: a block of columns for each leaf of the carry, with factored terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.matrices.banded import Banded
from kfrtrl_jax._src.matrices.block_rows import BlockRows
from kfrtrl_jax._src.matrices.dense import Dense
from kfrtrl_jax._src.matrices.index import spans, take
from kfrtrl_jax._src.matrices.operations import (
    Matrix,
    through_weights,
    times_weights,
    total_in_blocks,
)

Array = jax.Array

# J times at most one vector for this many rows is cheaper by its factors than by J itself.
_FEW_VECTORS = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FactoredTerm:
    """A term left @ weights @ right of a block, not multiplied out.

    Attributes:
      left: n x g.
      weights: [g, m], the same in all lanes; None until they are known.
      right: m x columns; None for the identity.
      block: static: which block of columns it is a term of.
    """

    left: Banded
    weights: Any
    right: Matrix | None
    block: int = dataclasses.field(metadata={"static": True})

    def multiplied_out(self) -> Matrix:
        """The term itself, [..., n, columns]."""
        if self.right is None:
            return times_weights(self.left, self.weights)
        return through_weights(self.left, self.weights.T, self.right)

    def times(self, x: Array) -> Array:
        """The product with x: [..., columns, k], giving [..., n, k]."""
        inputs = jnp.swapaxes(x if self.right is None else self.right.times(x), -1, -2)
        return self.left.times(jnp.swapaxes(inputs @ self.weights.T, -1, -2))

    def vector_times(self, v: Array) -> Array:
        """The product of v: [..., n] with the term, giving [..., columns]."""
        by_inputs = self.left.vector_times(v) @ self.weights
        return by_inputs if self.right is None else self.right.vector_times(by_inputs)

    def kept(self, keep: Array) -> FactoredTerm:
        """This term, and 0 where keep, [...], is 0: even in place of what is not finite."""
        right = self.right and self.right.kept(keep)
        return dataclasses.replace(self, left=self.left.kept(keep), right=right)

    def diagonal(self, rows: np.ndarray) -> Array | None:
        """The entry of each column at a row of its own, [..., columns]; None for a dense right."""
        if isinstance(self.right, Dense):
            return None
        terms = []
        right: list[tuple[np.ndarray, Any]] = [(np.arange(self.weights.shape[1]), None)]
        if self.right is not None:
            right = [
                (inputs, take(self.right.values[..., i, :], inputs, axis=-1))
                for i, inputs in enumerate(self.right.rows_of_columns())
            ]
        for inputs, entries in right:
            for j, columns in enumerate(self.left.columns.array):
                outputs = columns[rows]
                present = (inputs >= 0) & (outputs >= 0)
                weights = self.weights[np.maximum(outputs, 0), np.maximum(inputs, 0)]
                product = take(self.left.values[..., j, :], rows, axis=-1) * weights
                product = product if entries is None else product * entries
                terms.append(jnp.where(present, product, 0))
        return sum(terms[1:], terms[0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockColumns:
    """A matrix in blocks of columns, one block for each leaf of the carry.

    Each block is a matrix and a sum of factored terms. Products with few vectors use only these; the
    blocks are multiplied out where they are asked for.

    Attributes:
      rest: the blocks from left to right less the factored terms, each with all rows.
      products: the factored terms.
    """

    rest: tuple[Matrix | BlockRows, ...]
    products: tuple[FactoredTerm, ...] = ()

    @property
    def blocks(self) -> tuple[Matrix | BlockRows, ...]:
        """The blocks multiplied out: sums of the terms, each written once."""
        if not self.products:
            return self.rest
        return tuple(
            total_in_blocks(
                [block, *(p.multiplied_out() for p in self.products if p.block == i)], *block.shape
            )
            for i, block in enumerate(self.rest)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rest[0].shape[0], sum(block.shape[1] for block in self.rest)

    @property
    def _columns(self) -> list[tuple[int, int]]:
        return spans(block.shape[1] for block in self.rest)

    def times(self, x: Array) -> Array:
        """The product with x: [..., n, k], giving [..., n, k]."""
        if self.products and x.shape[-1] * _FEW_VECTORS <= x.shape[-2]:
            return self.times_few(x)
        return _times(self.blocks, x)

    def times_few(self, x: Array) -> Array:
        """As `times`, by the factors: for a few vectors."""
        result = _times(self.rest, x)
        for p in self.products:
            start, stop = self._columns[p.block]
            result = result + p.times(x[..., start:stop, :])
        return result

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

    def vector_times(self, v: Array) -> Array:
        """The product of v: [..., n] with this matrix, giving [..., n], by the factors."""
        parts = [block.vector_times(v) for block in self.rest]
        for p in self.products:
            parts[p.block] = parts[p.block] + p.vector_times(v)
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)

    def dense(self) -> Array:
        """[..., n, n]."""
        blocks = [block.dense() for block in self.blocks]
        return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=-1)

    def diagonal(self) -> Array:
        """[..., n]."""
        columns = [np.arange(start, stop) for start, stop in self._columns]
        parts = [
            block.entries_at(rows, np.arange(len(rows))) for block, rows in zip(self.rest, columns)
        ]
        for p in self.products:
            part = p.diagonal(columns[p.block])
            if part is None:
                return BlockColumns(self.blocks).diagonal()
            parts[p.block] = parts[p.block] + part
        return jnp.concatenate(parts, axis=-1)

    def entries_at(self, rows: np.ndarray, columns: np.ndarray) -> Array:
        """Entries at static rows and columns of one shape, 0 where either is -1: [..., *shape]."""
        rows, columns = np.broadcast_arrays(rows, columns)
        parts = []
        for block, (start, stop) in zip(self.blocks, self._columns):
            inside = (columns >= start) & (columns < stop)
            if inside.any():
                parts.append(block.entries_at(rows, np.where(inside, columns - start, -1)))
        if not parts:
            return jnp.zeros((*self.rest[0].lead, *rows.shape), jax.tree.leaves(self.rest)[0].dtype)
        return sum(parts[1:], parts[0])

    def scaled(self, scale: Array) -> BlockColumns:
        """This matrix times a number for each lane, scale: [...]; 0 times anything is 0."""

        def times_scale(matrix: Any) -> Any:
            if isinstance(matrix, BlockRows):
                return BlockRows(tuple(map(times_scale, matrix.parts)))
            s = scale[..., None, None].astype(matrix.values.dtype)
            return dataclasses.replace(matrix, values=jnp.where(s == 0, 0, s * matrix.values))

        return BlockColumns(
            tuple(times_scale(block) for block in self.rest),
            tuple(dataclasses.replace(p, left=times_scale(p.left)) for p in self.products),
        )

    def kept(self, keep: Array) -> BlockColumns:
        """This matrix, and 0 where keep, [...], is 0: even in place of what is not finite."""
        return BlockColumns(
            tuple(block.kept(keep) for block in self.rest),
            tuple(p.kept(keep) for p in self.products),
        )

    def rows(self, start: int, stop: int) -> BlockColumns:
        """Some of its rows."""
        if (start, stop) == (0, self.shape[0]):
            return self
        return BlockColumns(
            tuple(block.rows(start, stop) for block in self.rest),
            tuple(dataclasses.replace(p, left=p.left.rows(start, stop)) for p in self.products),
        )

    def diagonal_block(self, first: int, last: int) -> BlockColumns:
        """The square block of the leaves from number `first` to number `last` - 1 alone."""
        own = self.rows(self._columns[first][0], self._columns[last - 1][1])
        products = tuple(
            dataclasses.replace(p, block=p.block - first)
            for p in own.products
            if first <= p.block < last and p.left.num_bands
        )
        return BlockColumns(own.rest[first:last], products)


def _times(blocks: Sequence[Matrix | BlockRows], x: Array) -> Array:
    """The product of blocks of columns with x: [..., n, k]."""
    if len(blocks) == 1:
        return _sum_of_products(blocks, [x])
    columns = spans(block.shape[1] for block in blocks)
    return _sum_of_products(blocks, [x[..., start:stop, :] for start, stop in columns])


def _sum_of_products(blocks: Sequence[Matrix | BlockRows], pieces: Sequence[Array]) -> Array:
    """The sum of the products of blocks of columns with the rows that each multiplies."""
    terms = [
        block.times(piece)
        for block, piece in zip(blocks, pieces)
        if not (isinstance(block, Banded) and block.num_bands == 0)
    ]
    if not terms:
        x = pieces[0]
        return jnp.zeros((*x.shape[:-2], blocks[0].shape[0], x.shape[-1]), x.dtype)
    return sum(terms[1:], terms[0])
