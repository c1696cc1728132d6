"""Sums and products of matrices, in their cheapest form."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.matrices.banded import Banded
from kfrtrl_jax._src.matrices.block_rows import BlockRows
from kfrtrl_jax._src.matrices.dense import Dense
from kfrtrl_jax._src.matrices.index import Index, take
from kfrtrl_jax._src.xla import materialized

Array = jax.Array

Matrix = Dense | Banded


def total_in_blocks(
    matrices: Sequence[Matrix | BlockRows], rows: int, columns: int
) -> Matrix | BlockRows:
    """The sum of matrices of one shape, in the blocks of rows that one of them has, if any."""
    for m in matrices:
        if isinstance(m, BlockRows):
            return BlockRows(
                tuple(
                    total([plain(m.rows(*span)) for m in matrices], span[1] - span[0], columns)
                    for span in m.spans
                )
            )
    return total([plain(m) for m in matrices], rows, columns)


def plain(matrix: Matrix | BlockRows) -> Matrix:
    """The same matrix in one block."""
    return Dense(matrix.dense()) if isinstance(matrix, BlockRows) else matrix


def total(matrices: Sequence[Matrix], rows: int, columns: int) -> Matrix:
    """The sum of matrices of one shape, banded as long as all of them are."""
    banded = [m for m in matrices if isinstance(m, Banded) and m.num_bands]
    dense = [m for m in matrices if isinstance(m, Dense)]
    if dense:
        x = sum((m.values for m in dense[1:]), dense[0].values)
        for m in banded:
            x = m.add_to(x, jnp.ones(m.values.shape[:-2], m.values.dtype))
        return Dense(x)
    if not banded:
        lead = matrices[0].lead if matrices else ()
        return Banded(jnp.zeros((*lead, 0, rows)), Index(np.zeros((0, rows))), columns)
    # Entries at the same place belong in one band: a band's row has one column, each column once.
    merged: list[tuple[np.ndarray, Array]] = []
    for m in banded:
        for band, cols in enumerate(m.columns.array):
            value = jax.lax.index_in_dim(m.values, band, axis=-2, keepdims=False)
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
    """Whether no row contains a column twice, for columns: [bands, rows]."""
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
            for band in range(right.num_bands)
        ]
        if terms:
            return Dense(sum(terms[1:], terms[0]))
        lead = jnp.broadcast_shapes(left.lead, right.lead)
        return Dense(jnp.zeros((*lead, left.shape[0], right.num_columns), left.values.dtype))
    columns, values = [], []
    for i, outer in enumerate(left.columns.array):
        for j, inner in enumerate(right.columns.array):
            through = np.where(outer >= 0, inner[np.maximum(outer, 0)], -1)
            if np.any(through >= 0):
                value = left.values[..., i, :] * take(right.values[..., j, :], outer, axis=-1)
                columns.append(through)
                values.append(jnp.where(through >= 0, value, 0))
    if not values:
        return _nothing(left, right, left.shape[0], right.num_columns)
    singles = [
        Banded(value[..., None, :], Index(cols[None]), right.num_columns)
        for cols, value in zip(columns, values)
    ]
    return total(singles, left.shape[0], right.num_columns)


def _nothing(left: Matrix, right: Matrix, rows: int, columns: int) -> Banded:
    """A product that is 0 everywhere, for the lanes of both."""
    lead = jnp.broadcast_shapes(left.lead, right.lead)
    return Banded(jnp.zeros((*lead, 0, rows)), Index(np.zeros((0, rows))), columns)


def times_weights(left: Matrix, weights: Array) -> Dense:
    """left @ weights, for left: rows x g and weights: [g, columns] (no lanes).

    A banded left costs element-wise work only: no product is formed.
    """
    if isinstance(left, Dense):
        return Dense(left.values @ weights)
    if not left.num_bands:
        return Dense(jnp.zeros((*left.lead, left.shape[0], weights.shape[1]), left.values.dtype))
    # Written out, or the loop that makes the product would derive them once for every entry of every
    # lane.
    parts = [materialized(take(weights, columns, axis=-2)) for columns in left.columns.array]
    values = materialized(left.values)
    products = [values[..., i, :, None] * part for i, part in enumerate(parts)]
    return Dense(sum(products[1:], products[0]))


def through_weights(left: Matrix, weights: Array, right: Matrix) -> Matrix:
    """left @ weights.T @ right, for left: rows x g, weights: [m, g] (no lanes), right: m x columns.

    A banded left or right costs element-wise work only: no product is formed.
    """
    if isinstance(right, Dense):
        return compose(left, Dense(jnp.einsum("mg,...mc->...gc", weights, right.values)))
    terms: list[Matrix] = []
    if any(isinstance(m, Banded) and not m.num_bands for m in (left, right)):
        return _nothing(left, right, left.shape[0], right.shape[1])
    for band, rows in enumerate(right.rows_of_columns()):
        product = times_weights(left, take(weights, rows, axis=-2).T).values
        if not isinstance(right.values, np.ndarray):
            product = product * take(right.values[..., band, :], rows, axis=-1)[..., None, :]
        terms.append(Dense(product))
    return total(terms, left.shape[0], right.shape[1])


def placed(block: Matrix, start: int, rows: int) -> Matrix:
    """A block of rows at its place among `rows` rows, zero elsewhere."""
    if isinstance(block, Banded):
        return block.placed(start, rows)
    lead = [(0, 0)] * len(block.lead)
    around = (start, rows - start - block.shape[0])
    return Dense(jnp.pad(block.values, (*lead, around, (0, 0))))


def below_each_other(parts: Sequence[Matrix]) -> Matrix | BlockRows:
    """Blocks of rows one below the other, banded if all are."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, Banded) for part in parts):
        rows = sum(part.shape[0] for part in parts)
        starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        at_their_places = [placed(part, start, rows) for part, start in zip(parts, starts)]
        return total(at_their_places, rows, parts[0].shape[1])
    kinds = [part.values.dtype for part in parts if isinstance(part, Dense) or part.num_bands]
    dtype = jnp.result_type(*kinds)
    return BlockRows(
        tuple(dataclasses.replace(part, values=part.values.astype(dtype)) for part in parts)
    )


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
