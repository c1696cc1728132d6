"""A matrix given by all its entries."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.matrices.index import chosen, take
from kfrtrl_jax._src.xla import at_least_float32

Array = jax.Array


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

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes before those of the matrix."""
        return self.values.shape[:-2]

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
        return jnp.sum(at_least_float32(self.values) ** 2, axis=(-2, -1))

    def add_to(self, x: Array, scale: Array) -> Array:
        """X + scale * self, for x: [..., rows, columns] and scale: [...]."""
        return x + scale[..., None, None] * self.values

    def rows(self, start: int, stop: int) -> Dense:
        """Some of its rows."""
        return Dense(self.values[..., start:stop, :])

    def columns_at(self, places: np.ndarray) -> Dense:
        """Its columns at static places, 0 for -1."""
        return Dense(take(self.values, places, axis=-1))

    def kept(self, keep: Array) -> Dense:
        """This matrix, and 0 where keep, [...], is 0: even in place of what is not finite."""
        return Dense(chosen(self.values, keep))

    def scale_columns(self, s: Array) -> Dense:
        """This matrix times diag(s), s: [..., columns]."""
        return Dense(self.values * s[..., None, :])

    def scaled(self, scale: Array) -> Dense:
        """This matrix times numbers, scale: [...]."""
        return Dense(self.values * scale[..., None, None])

    def column_squares(self) -> Array:
        """The squared norm of each column, [..., columns], accumulated in at least float32."""
        return jnp.sum(at_least_float32(self.values) ** 2, axis=-2)

    def row_squares(self) -> Array:
        """The squared norm of each row, [..., rows], accumulated in at least float32."""
        return jnp.sum(at_least_float32(self.values) ** 2, axis=-1)

    def entries_at(self, rows: np.ndarray, columns: np.ndarray) -> Array:
        """Entries at static rows and columns of one shape, 0 where either is -1: [..., *shape]."""
        present = (rows >= 0) & (columns >= 0)
        entries = self.values[..., np.where(present, rows, 0), np.where(present, columns, 0)]
        return entries if present.all() else jnp.where(present, entries, 0)
