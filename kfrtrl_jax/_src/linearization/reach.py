"""Where J and every D can be non-zero: the elimination in boolean arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np

from kfrtrl_jax._src.base import Mask
from kfrtrl_jax._src.linearization.discovery import InnerLoop
from kfrtrl_jax._src.linearization.local_jacobians import LocalJacobians, Target, local_of
from kfrtrl_jax._src.linearization.program import Variable, is_inexact
from kfrtrl_jax._src.linearization.weight_terms import Bias, Product, Rest, Scaling
from kfrtrl_jax._src.matrices import (
    Banded,
    Matrix,
    places_of_bands,
    spans,
)

Array = jax.Array

# Rows of a boolean matrix with no more entries than this are combined one by one.
_FEW = 16


def reachable(
    local: LocalJacobians, masks: dict[Variable, np.ndarray]
) -> dict[Variable, np.ndarray]:
    """For every source, where the new state's derivative by it can be non-zero: [n, size].

    Boolean counterpart of `elimination.eliminate`.

    Args:
      local: the local relations.
      masks: where parameter-only values can be non-zero, for those with known zeros.
    """
    rows = [target.rows for target in local.results]
    identity = np.eye(sum(rows), dtype=bool)
    return _reached(local, [identity[:, start:stop] for start, stop in spans(rows)], masks)


def _reached(
    local: LocalJacobians, lefts: Sequence[np.ndarray], masks: dict[Variable, np.ndarray]
) -> dict[Variable, np.ndarray]:
    """The same, from where the derivative by each result can be non-zero, [n, size]."""
    reach = {v: np.zeros((len(lefts[0]), math.prod(v.shape)), bool) for v in local.sources}

    def add(left: np.ndarray, target: Target, through_all: bool = False) -> None:
        for source, columns in target.relations.items():
            relation = _boolean(columns, target.rows, math.prod(source.shape))
            if through_all:
                reach[source] |= np.outer(left.any(axis=1), relation.any(axis=0))
            else:
                reach[source] |= _boolean_product(relation.T, left.T).T

    for left, target in zip(lefts, local.results):
        add(left, target)
    for i, cut in reversed(list(enumerate(local.cuts))):
        if isinstance(cut, InnerLoop):
            by_inputs, inside = _through_loop(cut, reach, masks)
            reach.update(inside)
            for left, target in zip(by_inputs, local.reads_of(i)):
                add(left, target)
            continue
        for j, term in enumerate(cut.terms):
            if isinstance(term, Bias):
                continue
            target = local.reads[i, j]
            mask = None if isinstance(term, Rest) else masks.get(term.weights)
            derivative = reach[cut.variable]
            if isinstance(term, Scaling) and mask is not None:
                derivative = derivative & term.vector(mask)
            # A product of several vectors is one with a matrix that has zeros.
            full = isinstance(term, Product) and mask is None and term.uses == 1
            if isinstance(term, Product) and not full:
                derivative = _boolean_product(derivative, term.nonzero(mask).T)
            add(derivative, target, through_all=full)
    return reach


def _through_loop(
    inner: InnerLoop, reach: dict[Variable, np.ndarray], masks: dict[Variable, np.ndarray]
) -> tuple[list[np.ndarray], dict[Variable, np.ndarray]]:
    """Where the derivatives by a loop's inputs and by the pre-activations in it can be non-zero."""
    loop, local = inner.loop, local_of(inner)
    constants, carried, scanned = loop.body.floats
    lefts = [reach[v] for v in loop.outputs if is_inexact(v)]
    ends, stacked = lefts[: len(carried)], lefts[len(carried) :]
    once: list[np.ndarray] = [np.any(s.reshape(len(s), loop.length, -1), axis=1) for s in stacked]
    for _ in range(loop.length):
        found = _reached(local, [*ends, *once], masks)
        more = [end | found[v] for end, v in zip(ends, carried)]
        if all(map(np.array_equal, more, ends)):
            break
        ends = more
    found = _reached(local, [*ends, *once], masks)
    by_inputs = [
        *(found[v] for v in constants),
        *ends,
        *(np.tile(found[v], loop.length) for v in scanned),
    ]
    own = {v for v, _ in inner.discovery.tapped()}
    return by_inputs, {v: mask for v, mask in found.items() if v in own}


def places(matrix: Matrix) -> np.ndarray:
    """Where a matrix can be non-zero, by its form."""
    if isinstance(matrix, Banded):
        return places_of_bands(matrix.columns.array, matrix.num_columns)
    return np.ones(matrix.shape, bool)


def _boolean(columns: np.ndarray | None, rows: int, size: int) -> np.ndarray:
    """Where a local Jacobian of the given bands can be non-zero, [rows, size]."""
    if columns is None:
        return np.ones((rows, size), bool)
    return places_of_bands(columns, size)


def _boolean_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The product of boolean matrices; where rows of `left` are nearly empty no product is formed."""
    counts = left.sum(axis=1)
    if counts.max(initial=0) > _FEW:
        return (left.astype(np.float32) @ right.astype(np.float32)) > 0
    _, columns = np.nonzero(left)
    first = np.cumsum(counts) - counts
    product = np.zeros((len(left), right.shape[1]), bool)
    for k in range(int(counts.max(initial=0))):
        having = np.flatnonzero(counts > k)
        product[having] |= right[columns[first[having] + k]]
    return product


def mask_of(parts: Sequence[np.ndarray | None]) -> Mask | None:
    """Boolean matrices side by side, or None where they hold everything."""
    whole = [part for part in parts if part is not None]
    return Mask(np.concatenate(whole, axis=1)) if not all(map(np.all, whole)) else None
