"""Where J and every D can be non-zero: the elimination over booleans."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np

from kfrtrl_jax._src.base import Mask
from kfrtrl_jax._src.linearization.local_jacobians import LocalJacobians
from kfrtrl_jax._src.linearization.program import (
    Variable,
)
from kfrtrl_jax._src.linearization.weight_terms import Bias, Product, Rest, Scaling
from kfrtrl_jax._src.matrices import (
    Banded,
    Matrix,
    places_of_bands,
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
    starts = np.cumsum([0, *(target.rows for target in local.new_states)])
    reach = {v: np.zeros((starts[-1], math.prod(v.shape)), bool) for v in local.sources}
    for target, start, stop in zip(local.new_states, starts, starts[1:]):
        for source, columns in target.relations.items():
            reach[source][start:stop] = _boolean(columns, target.rows, math.prod(source.shape))
    for i in reversed(range(len(local.pre_activations))):
        z = local.pre_activations[i]
        for j, term in enumerate(z.terms):
            if isinstance(term, Bias):
                continue
            target = local.reads[i, j]
            mask = None if isinstance(term, Rest) else masks.get(term.weights)
            derivative = reach[z.variable]
            if isinstance(term, Scaling) and mask is not None:
                derivative = derivative & term.vector(mask)
            # A product of several vectors is one with a matrix that has zeros.
            full = isinstance(term, Product) and term.uses == 1 and mask is None
            if isinstance(term, Product) and not full:
                derivative = _boolean_product(derivative, term.nonzero(mask).T)
            for source, columns in target.relations.items():
                relation = _boolean(columns, target.rows, math.prod(source.shape))
                if full:
                    reached = np.outer(derivative.any(axis=1), relation.any(axis=0))
                else:
                    reached = _boolean_product(relation.T, derivative.T).T
                reach[source] |= reached
    return reach


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
