"""T matrices as one, side by side: the derivatives of T uses of the same weights within a step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.matrices.banded import Banded
from kfrtrl_jax._src.matrices.composed import Composed
from kfrtrl_jax._src.matrices.dense import Dense
from kfrtrl_jax._src.xla import at_least_float32, sum_of_first

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shared:
    """Matrices D_1 .. D_T, n x g, as the one matrix [D_1, .., D_T].

    A convolution's D_t is not zero in the rows of position t alone: side by side they are as banded as
    the derivative by the whole pre-activation is, one by one each would need all of its rows.

    Attributes:
      whole: [1, B, n, T g].
      count: T, static.
    """

    whole: Dense | Banded | Composed
    count: int = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """(n, g)."""
        rows, columns = self.whole.shape
        return rows, columns // self.count

    @property
    def lead(self) -> tuple[int, ...]:
        """(T, B)."""
        return (self.count, *self.whole.lead[1:])

    def dense(self) -> Array:
        """[T, B, n, g]."""
        return self._apart(self.whole.dense())

    def squared_norm(self) -> Array:
        """Squared Frobenius norms, [T, B], accumulated in at least float32."""
        return jnp.sum(self.column_squares(), axis=-1)

    def column_squares(self) -> Array:
        """The squared norm of each column, [T, B, g], accumulated in at least float32."""
        return self._apart(self.whole.column_squares())

    def row_squares(self) -> Array:
        """The squared norm of each row, [T, B, n], accumulated in at least float32."""
        whole = self.whole
        if not isinstance(whole, Banded):
            return jnp.sum(at_least_float32(self.dense()) ** 2, axis=-1)
        squares = at_least_float32(whole.values[0]) ** 2
        return jnp.sum(jnp.where(self._is_of_term(), squares, 0), axis=-2)

    def entries_at(self, rows: np.ndarray, columns: np.ndarray) -> Array:
        """Entries at static rows and columns of one shape, 0 where either is -1: [T, B, *shape]."""
        g = self.shape[1]
        starts = g * np.arange(self.count).reshape(-1, *[1] * rows.ndim)
        of_terms = np.where(columns >= 0, columns + starts, -1)
        entries = self.whole.entries_at(np.broadcast_to(rows, of_terms.shape), of_terms)
        return jnp.moveaxis(entries[0], 1, 0)

    def times(self, x: Array) -> Array:
        """D_t x_t, [T, B, n, k], for x: [T, B, g, k]."""
        whole = self.whole
        if isinstance(whole, Composed):
            return whole.left @ Shared(whole.right, self.count).times(x)
        if isinstance(whole, Dense):
            return self.dense() @ x
        g = self.shape[1]
        result = jnp.zeros((*self.lead, self.shape[0], x.shape[-1]), x.dtype)
        for band, columns in enumerate(whole.columns.array):
            here = np.where(columns >= 0, columns, 0)
            mine = (columns >= 0) & (here // g == np.arange(self.count)[:, None])
            chosen = x[..., here % g, :] * whole.values[0][:, band, :, None]
            result = result + jnp.where(mine[:, None, :, None], chosen, 0)
        return result

    def vector_times(self, v: Array) -> Array:
        """v^T D_t, [T, B, g], for v: [B, n]."""
        return self._apart(self.whole.vector_times(v))

    def add_to(self, x: Array, scales: Array) -> Array:
        """X + sum_t scale_t D_t, for x: [B, n, g] and scales: [T, B]."""
        whole = self.scaled(scales).whole
        if not isinstance(whole, Banded):
            return x + sum_of_first(self._apart(whole.dense()))
        g = self.shape[1]
        for values, columns in zip(jnp.moveaxis(whole.values[0], 1, 0), whole.columns.array):
            # Each row has one entry of a band, whichever term it is of; columns can recur.
            here = (columns >= 0)[:, None] & (columns[:, None] % g == np.arange(g))
            x = x + jnp.where(here, values[..., None], 0).astype(x.dtype)
        return x

    def rows(self, start: int, stop: int) -> Shared:
        """Some of their rows."""
        return Shared(self.whole.rows(start, stop), self.count)

    def columns_at(self, places: np.ndarray) -> Shared:
        """The columns of each D_t at static places, 0 for -1; none stands at two."""
        starts = self.shape[1] * np.arange(self.count)[:, None]
        of_whole = np.where(places >= 0, places + starts, -1).reshape(-1)
        return Shared(self.whole.columns_at(of_whole), self.count)

    def kept(self, keep: Array) -> Shared:
        """The same, and 0 where keep, [T, B] and alike for all T, is 0: even if it is not finite."""
        return Shared(self.whole.kept(keep[:1]), self.count)

    def scaled(self, scales: Array) -> Shared:
        """scale_t D_t, for scales: [T, B]."""
        of_columns = jnp.repeat(jnp.moveaxis(scales, 0, -1), self.shape[1], axis=-1)
        return Shared(self.whole.scale_columns(of_columns[None]), self.count)

    def _apart(self, x: Array) -> Array:
        """[1, B, ..., T g] as [T, B, ..., g]."""
        apart = x[0].reshape(*x.shape[1:-1], self.count, -1)
        return jnp.moveaxis(apart, -2, 0)

    def _is_of_term(self) -> np.ndarray:
        """Which entries of the bands belong to each term, [T, 1, bands, n]."""
        assert isinstance(self.whole, Banded)
        columns = self.whole.columns.array
        terms = np.where(columns >= 0, columns // self.shape[1], -1)
        return terms == np.arange(self.count)[:, None, None, None]
