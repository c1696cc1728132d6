"""Matrices in blocks of rows: what a lower layer of a deep network does to each of the layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.matrices.banded import Banded
from kfrtrl_jax._src.matrices.dense import Dense
from kfrtrl_jax._src.matrices.index import spans

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockRows:
    """Blocks one below the other, of which each has its own form.

    Attributes:
      parts: from top to bottom, all with the same columns and leading axes.
    """

    parts: tuple[Dense | Banded, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes before those of the matrix."""
        return self.parts[0].lead

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The first row of each part, and the one after its last."""
        return spans(part.shape[0] for part in self.parts)

    def dense(self) -> Array:
        """[..., rows, columns]."""
        return jnp.concatenate([part.dense() for part in self.parts], axis=-2)

    def times(self, x: Array) -> Array:
        """The product with x: [..., columns, k], giving [..., rows, k]."""
        return jnp.concatenate([part.times(x) for part in self.parts], axis=-2)

    def vector_times(self, v: Array) -> Array:
        """The product of v: [..., rows] with this matrix, giving [..., columns]."""
        pairs = zip(self.parts, self.spans)
        return sum_of([part.vector_times(v[..., slice(*rows)]) for part, rows in pairs])

    def squared_norm(self) -> Array:
        """The squared Frobenius norm, [...], accumulated in at least float32."""
        return sum_of([part.squared_norm() for part in self.parts])

    def column_squares(self) -> Array:
        """The squared norm of each column, [..., columns], accumulated in at least float32."""
        return sum_of([part.column_squares() for part in self.parts])

    def row_squares(self) -> Array:
        """The squared norm of each row, [..., rows], accumulated in at least float32."""
        return jnp.concatenate([part.row_squares() for part in self.parts], axis=-1)

    def add_to(self, x: Array, scale: Array) -> Array:
        """X + scale * self, for x: [..., rows, columns] and scale: [...]."""
        pairs = zip(self.parts, self.spans)
        return jnp.concatenate(
            [part.add_to(x[..., slice(*rows), :], scale) for part, rows in pairs], axis=-2
        )

    def rows(self, start: int, stop: int) -> Dense | Banded | BlockRows:
        """Some of its rows; those of one part in the part's form."""
        parts = tuple(
            part.rows(max(start - first, 0), min(stop, last) - first)
            for part, (first, last) in zip(self.parts, self.spans)
            if start < last and first < stop
        )
        return parts[0] if len(parts) == 1 else BlockRows(parts)

    def columns_at(self, places: np.ndarray) -> BlockRows:
        """Its columns at static places, 0 for -1; none stands at two."""
        return self._each(lambda part: part.columns_at(places))

    def kept(self, keep: Array) -> BlockRows:
        """This matrix, and 0 where keep, [...], is 0: even in place of what is not finite."""
        return self._each(lambda part: part.kept(keep))

    def scale_columns(self, s: Array) -> BlockRows:
        """This matrix times diag(s), s: [..., columns]."""
        return self._each(lambda part: part.scale_columns(s))

    def scaled(self, scale: Array) -> BlockRows:
        """This matrix times numbers, scale: [...]."""
        return self._each(lambda part: part.scaled(scale))

    def entries_at(self, rows: np.ndarray, columns: np.ndarray) -> Array:
        """Entries at static rows and columns of one shape, 0 where either is -1: [..., *shape]."""
        found = []
        for part, (start, stop) in zip(self.parts, self.spans):
            inside = (rows >= start) & (rows < stop)
            if inside.any():
                found.append(part.entries_at(np.where(inside, rows - start, -1), columns))
        return sum_of(found or [self.parts[0].entries_at(np.full_like(rows, -1), columns)])

    def _each(self, change: Callable[[Dense | Banded], Dense | Banded]) -> BlockRows:
        return BlockRows(tuple(map(change, self.parts)))


def sum_of(terms: list[Array]) -> Array:
    """The sum of at least one array."""
    return sum(terms[1:], terms[0])
