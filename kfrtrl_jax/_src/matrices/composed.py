"""A dense matrix times a banded one, not multiplied out: what a step does to a later state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.matrices.banded import Banded
from kfrtrl_jax._src.matrices.index import chosen, runs, take
from kfrtrl_jax._src.xla import at_least_float32, materialized, sum_of_rows

Array = jax.Array

# With more than these the columns are gathered.
MAX_STRETCHES = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Composed:
    """The product Q D of a dense matrix and a banded one.

    Column c of it is a sum of as many columns of Q as column c of D has entries: norms and sums of
    several such products take passes over Q, and no product of matrices.

    Attributes:
      left: Q, [..., rows, k].
      right: D, k x columns. Its leading axes may be longer where those of Q are 1: one Q for several D.
    """

    left: Array
    right: Banded

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.left.shape[-2], self.right.shape[1]

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes before those of the matrix."""
        return self.right.lead

    def dense(self) -> Array:
        """[..., rows, columns]."""
        stretches = self.in_stretches(stretch([self.right]))
        return stretches.reshape(*stretches.shape[:-2], self.right.num_columns)

    def in_stretches(self, length: int) -> Array:
        """[..., rows, columns / length, length], for a length that `stretch` gives.

        All stretches that take the same columns of Q do so in one pass, without a choice for each
        entry: as long as nothing else has to be done in the same pass to the array in two axes.
        """
        terms = [
            take(self.left, of_left, axis=-1)[..., None, :] * weights[..., None, :, :]
            for of_left, weights in self._stretches(length)
        ]
        if not terms:
            shape = (*self.lead, self.shape[0], self.shape[1] // length, length)
            return jnp.zeros(shape, self.left.dtype)
        return sum(terms[1:], terms[0])

    def _stretches(self, length: int) -> Iterator[tuple[np.ndarray, Array]]:
        """What stretches of columns take of Q.

        Yields:
          Columns of Q, [length], static, -1 for none, and by what each stretch multiplies them,
          [..., columns / length, length].
        """
        right, count = self.right, self.right.num_columns // length
        found: dict[bytes, tuple[np.ndarray, list[Array | None]]] = {}
        for band, rows in enumerate(right.rows_of_columns()):
            for place, here in enumerate(rows.reshape(count, length)):
                if np.any(here >= 0):
                    _, weights = found.setdefault(here.tobytes(), (here, [None] * count))
                    new, old = take(right.values[..., band, :], here, axis=-1), weights[place]
                    weights[place] = new if old is None else old + new
        nothing = jnp.zeros((*right.lead, length), right.values.dtype)
        for here, weights in found.values():
            # Written out, as they are read for every row.
            parts = [nothing if w is None else w for w in weights]
            yield here, materialized(jnp.stack(parts, axis=-2))

    def times(self, x: Array) -> Array:
        """The product with x: [..., columns, k], giving [..., rows, k]."""
        return self.left @ self.right.times(x)

    def vector_times(self, v: Array) -> Array:
        """The product of v: [..., rows] with this matrix, giving [..., columns]."""
        return self.right.vector_times(jnp.einsum("...r,...rk->...k", v, self.left))

    def squared_norm(self) -> Array:
        """The squared Frobenius norm, [...], accumulated in at least float32."""
        left = at_least_float32(self.left)
        result = jnp.zeros(self.lead, left.dtype)
        for partner, weights in self._pairs():
            result = result + jnp.sum(weights * _column_products(left, partner), axis=-1)
        return result

    def column_squares(self) -> Array:
        """The squared norm of each column, [..., columns], accumulated in at least float32."""
        values = at_least_float32(self.right.values)
        result = jnp.zeros((*self.lead, self.right.num_columns), values.dtype)
        for i, j, first, second, partner in self._meetings():
            products = take(_column_products(at_least_float32(self.left), partner), first, axis=-1)
            product = take(values[..., i, :], first, -1) * take(values[..., j, :], second, -1)
            result = result + (1 if i == j else 2) * product * products
        return result

    def row_squares(self) -> Array:
        """The squared norm of each row, [..., rows], accumulated in at least float32."""
        left = at_least_float32(self.left)
        result = jnp.zeros((*self.lead, self.shape[0]), left.dtype)
        for partner, weights in self._pairs():
            other = left if _is_identity(partner) else take(left, partner, axis=-1)
            result = result + jnp.einsum("...rk,...k->...r", left * other, weights)
        return result

    def _meetings(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]:
        """The pairs of bands of D that have entries in the same columns.

        Yields:
          The two bands, the row of each column's entry in either, [columns], and for each column of Q
          the one that it meets, [k]; static, -1 for none.
        """
        rows = self.right.rows_of_columns()
        for i in range(len(rows)):
            for j in range(i + 1):
                both = (rows[i] >= 0) & (rows[j] >= 0)
                # The smaller row first, so that two columns of Q meet but once, whatever the bands.
                for a, b, here in ((i, j, rows[i] <= rows[j]), (j, i, rows[j] < rows[i])):
                    first, second = (np.where(both & here, rows[x], -1) for x in (a, b))
                    partner = np.full(self.right.shape[0], -1)
                    partner[first[first >= 0]] = second[first >= 0]
                    if np.any(first >= 0):
                        yield a, b, first, second, partner

    def _pairs(self) -> Iterator[tuple[np.ndarray, Array]]:
        """The pairs of Q's columns that meet in a column of Q D, and how much, to get squared norms.

        Yields:
          For each column of Q its partner, [k], static, -1 for none, and the weight of their inner
          product in |Q D|^2, [..., k].
        """
        values = at_least_float32(self.right.values)
        found: list[tuple[np.ndarray, Array]] = []
        for i, j, _, _, partner in self._meetings():
            weight = values[..., i, :] * take(values[..., j, :], partner, axis=-1)
            weight = weight if i == j else 2 * weight
            for k, (other, sum_of_weights) in enumerate(found):
                agree = (other == partner) | (other < 0) | (partner < 0)
                if agree.all():
                    found[k] = (np.maximum(other, partner), sum_of_weights + weight)
                    break
            else:
                found.append((partner, weight))
        yield from found

    def rows(self, start: int, stop: int) -> Composed:
        """Some of its rows."""
        if (start, stop) == (0, self.left.shape[-2]):
            return self
        return Composed(self.left[..., start:stop, :], self.right)

    def columns_at(self, places: np.ndarray) -> Composed:
        """Its columns at static places, 0 for -1; none stands at two."""
        return Composed(self.left, self.right.columns_at(places))

    def kept(self, keep: Array) -> Composed:
        """This matrix, and 0 where keep, [...], is 0: even in place of what is not finite."""
        return Composed(chosen(self.left, keep), self.right.kept(keep))

    def scaled(self, scale: Array) -> Composed:
        """This matrix times numbers, scale: [...]."""
        return Composed(self.left, self.right.scaled(scale))

    def scale_columns(self, s: Array) -> Composed:
        """This matrix times diag(s), s: [..., columns]."""
        return Composed(self.left, self.right.scale_columns(s))

    def entries_at(self, rows: np.ndarray, columns: np.ndarray) -> Array:
        """Entries at static rows and columns of one shape, 0 where either is -1: [..., *shape]."""
        result = jnp.zeros((*self.lead, *rows.shape), self.left.dtype)
        for band, of_columns in enumerate(self.right.rows_of_columns()):
            through = np.where(columns >= 0, of_columns[np.maximum(columns, 0)], -1)
            present = (rows >= 0) & (through >= 0)
            if not present.any():
                continue
            place = np.where(present, through, 0)
            entries = self.left[..., np.where(present, rows, 0), place]
            result = result + jnp.where(present, entries * self.right.values[..., band, place], 0)
        return result


def stretch(matrices: Sequence[Banded]) -> int:
    """A length of stretches of columns, in each of which every band's rows are a run or absent."""
    columns = matrices[0].num_columns
    bands = [rows for matrix in matrices for rows in matrix.rows_of_columns()]
    length = math.gcd(columns, *(length for rows in bands for _, length in runs(rows)))
    return length if columns <= length * MAX_STRETCHES else columns


def _is_identity(partner: np.ndarray) -> bool:
    return bool(np.array_equal(partner, np.arange(len(partner))))


def _column_products(left: Array, partner: np.ndarray) -> Array:
    """The inner product of each column with its partner, 0 without one: [..., k]."""
    if _is_identity(partner):
        return jnp.sum(left * left, axis=-2)
    parts, start = [], 0
    for first, count in runs(partner):
        here, there = slice(start, start + count), slice(first, first + count)
        start += count
        parts.append(
            sum_of_rows(left[..., here] * left[..., there])
            if first >= 0
            else jnp.zeros((*left.shape[:-2], count), left.dtype)
        )
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
