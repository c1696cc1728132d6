"""Matrices with few entries in each row and column: sums of partial permutations, scaled."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.host_memory import require_memory
from kfrtrl_jax._src.matrices.index import Index, chosen, take
from kfrtrl_jax._src.xla import at_least_float32

Array = jax.Array


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
    def num_bands(self) -> int:
        """How many entries a row has at most."""
        return self.columns.array.shape[0]

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes before those of the matrix."""
        return self.values.shape[:-2]

    def rows_of_columns(self) -> np.ndarray:
        """[bands, columns], static: the row of each column's entry in each band, -1 for none."""
        rows = np.full((self.num_bands, self.num_columns), -1)
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
            lead = jnp.broadcast_shapes(x.shape[:-2], self.lead)
            return jnp.zeros((*lead, self.shape[0], x.shape[-1]), x.dtype)
        return sum(terms[1:], terms[0])

    def vector_times(self, v: Array) -> Array:
        """The product of v: [..., rows] with this matrix, giving [..., columns]."""
        flat = self.values.reshape(*self.lead, self.num_bands * self.shape[0])
        terms = [
            take(v, np.where(places < 0, -1, places % self.shape[0]), axis=-1)
            * take(flat, places, axis=-1)
            for places in self._entries_of_columns()
        ]
        if not terms:
            lead = jnp.broadcast_shapes(v.shape[:-1], self.lead)
            return jnp.zeros((*lead, self.num_columns), v.dtype)
        return sum(terms[1:], terms[0])

    def _entries_of_columns(self) -> np.ndarray:
        """The places of each column's entries among all values, [entries at most, columns], static.

        Absent ones, -1, come last: where all columns have one entry it is no sum over bands.
        """
        rows = self.rows_of_columns()
        places = np.where(rows >= 0, rows + np.arange(self.num_bands)[:, None] * self.shape[0], -1)
        present_first = np.argsort(rows < 0, axis=0, kind="stable")
        most = int(np.sum(rows >= 0, axis=0).max(initial=0))
        return np.take_along_axis(places, present_first, axis=0)[:most]

    def squared_norm(self) -> Array:
        """The squared Frobenius norm, [...], accumulated in at least float32."""
        return jnp.sum(at_least_float32(self.values) ** 2, axis=(-2, -1))

    def add_to(self, x: Array, scale: Array) -> Array:
        """X + scale * self, for x: [..., rows, columns] and scale: [...].

        Touches no entry of x but those of the bands, where nobody else reads x.
        """
        return self.add_to_each(x[..., None], scale[..., None])[..., 0]

    def add_to_each(self, x: Array, scales: Array) -> Array:
        """X_i + scale_i * self for each i, for x: [..., rows, columns, r] and scales: [..., r].

        Touches no entry of x but those of the bands, where nobody else reads x.
        """
        rows, columns = self.shape
        places = np.arange(rows) * columns + self.columns.array
        present = np.flatnonzero(self.columns.array >= 0)
        lead, r = x.shape[:-3], x.shape[-1]
        values = take(self.values.reshape(*self.lead, self.num_bands * rows), present, axis=-1)
        entries = (values[..., None] * scales[..., None, :]).astype(x.dtype)
        added = (
            x.reshape(*lead, rows * columns, r)
            .at[..., places.reshape(-1)[present], :]
            .add(entries, unique_indices=True, mode="promise_in_bounds")
        )
        return added.reshape(x.shape)

    def rows(self, start: int, stop: int) -> Banded:
        """Some of its rows, without the bands that have no entry there."""
        columns = self.columns.array[:, start:stop]
        bands = np.flatnonzero((columns >= 0).any(axis=1))
        values = take(self.values[..., start:stop], bands, axis=-2)
        return Banded(values, Index(columns[bands]), self.num_columns)

    def placed(self, start: int, rows: int) -> Banded:
        """These rows at their place among `rows` rows, zero elsewhere."""
        around = (start, rows - start - self.shape[0])
        columns = np.pad(self.columns.array, ((0, 0), around), constant_values=-1)
        values = jnp.pad(self.values, (*[(0, 0)] * (len(self.lead) + 1), around))
        return Banded(values, Index(columns), self.num_columns)

    def columns_at(self, places: np.ndarray) -> Banded:
        """Its columns at static places, 0 for -1; none stands at two."""
        new = np.full(self.num_columns + 1, -1)
        new[places[places >= 0]] = np.flatnonzero(places >= 0)
        columns = new[self.columns.array]
        values = jnp.where(columns >= 0, self.values, 0)
        return Banded(values, Index(columns), len(places))

    def kept(self, keep: Array) -> Banded:
        """This matrix, and 0 where keep, [...], is 0: even in place of what is not finite."""
        return dataclasses.replace(self, values=chosen(self.values, keep))

    def scale_columns(self, s: Array) -> Banded:
        """This matrix times diag(s), s: [..., columns]."""
        if not self.num_bands:
            return self
        scales = jnp.stack([take(s, columns, axis=-1) for columns in self.columns.array], axis=-2)
        return dataclasses.replace(self, values=self.values * scales)

    def scaled(self, scale: Array) -> Banded:
        """This matrix times numbers, scale: [...]."""
        return dataclasses.replace(self, values=self.values * scale[..., None, None])

    def column_squares(self) -> Array:
        """The squared norm of each column, [..., columns], accumulated in at least float32."""
        squares = dataclasses.replace(self, values=at_least_float32(self.values) ** 2)
        ones = jnp.ones((*self.lead, self.shape[0]), squares.values.dtype)
        return squares.vector_times(ones)

    def row_squares(self) -> Array:
        """The squared norm of each row, [..., rows], accumulated in at least float32."""
        squares = at_least_float32(self.values) ** 2
        return jnp.sum(jnp.where(self.columns.array >= 0, squares, 0), axis=-2)

    def entries_at(self, rows: np.ndarray, columns: np.ndarray) -> Array:
        """Entries at static rows and columns of one shape, 0 where either is -1: [..., *shape]."""
        result = jnp.zeros((*self.lead, *rows.shape), self.values.dtype)
        for band, of_band in enumerate(self.columns.array):
            present = (rows >= 0) & (columns >= 0) & (of_band[np.maximum(rows, 0)] == columns)
            if present.any():
                entries = _at(self.values[..., band, :], np.where(present, rows, 0))
                result = result + jnp.where(present, entries, 0)
        return result


def _at(x: Array, indices: np.ndarray) -> Array:
    """`x`: [..., k] at static indices of any shape; no gather where they are few runs."""
    return take(x, indices, axis=-1) if indices.ndim == 1 else x[..., indices]


def places_of_bands(columns: np.ndarray, num_columns: int) -> np.ndarray:
    """Where a matrix of these bands can be non-zero, [rows, num_columns]; see `Banded`."""
    rows = columns.shape[1]
    # Patterns are combined, in single precision where they are multiplied.
    require_memory(f"a pattern of {rows} x {num_columns} entries", 6 * rows * num_columns)
    places = np.zeros((rows, num_columns), bool)
    for band in columns:
        present = np.flatnonzero(band >= 0)
        places[present, band[present]] = True
    return places
