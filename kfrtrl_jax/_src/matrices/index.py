"""Static indices, and gathers by them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# A gather is only worth its cost where the indices are not a few runs of consecutive numbers.
_MAX_SLICES = 8


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
    pieces = runs(indices)
    if len(pieces) > _MAX_SLICES:
        shape = [1] * x.ndim
        shape[axis] = len(indices)
        present = jnp.asarray((indices >= 0).reshape(shape))
        return jnp.where(present, jnp.take(x, np.maximum(indices, 0), axis=axis), 0)
    parts = []
    for first, length in pieces:
        if first < 0:
            shape = list(x.shape)
            shape[axis] = length
            parts.append(jnp.zeros(shape, x.dtype))
        else:
            parts.append(jax.lax.slice_in_dim(x, first, first + length, axis=x.ndim + axis))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis)


def runs(indices: np.ndarray) -> list[tuple[int, int]]:
    """Runs of consecutive static indices: the first of each, -1 for absent ones, and its length."""
    steps_on = (indices[1:] == indices[:-1] + 1) & (indices[:-1] >= 0)
    both_absent = (indices[1:] < 0) & (indices[:-1] < 0)
    starts = np.flatnonzero(np.concatenate([[True], ~(steps_on | both_absent)]))
    stops = [*starts[1:], len(indices)]
    return [(int(indices[start]), int(stop - start)) for start, stop in zip(starts, stops)]


def spans(sizes: Iterable[int]) -> list[tuple[int, int]]:
    """(start, stop) of each of some parts that lie one after the other."""
    stops = list(itertools.accumulate(sizes))
    return list(zip([0, *stops], stops))


def chosen(values: Array, keep: Array) -> Array:
    """Matrices `values`, [..., rows, columns], and 0 where keep, [...], is 0, whatever stands there."""
    return jnp.where(keep[..., None, None] == 0, 0, values)
