"""Sparse n-step approximation (Menick et al., 2021, arXiv:2006.07232)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    Site,
    SiteGradients,
    Structure,
)
from kfrtrl_jax.matrices import Banded, BlockColumns, Dense, Matrix, take


class SnapState(NamedTuple):
    """The influence matrix on a sparsity pattern.

    Attributes:
      influence: for every site and each of its inputs j the matrix ds/dW_j, n x g: values
        [B, m, bands, n] where it is banded, [B, m, n, g] where it is dense.
    """

    influence: tuple[Matrix, ...]


def snap(order: int = 1) -> InfluenceEstimator:
    """G <- J G + I where a weight can reach a unit within `order` steps, 0 elsewhere.

    With order 1 these are the places where I can be non-zero. At sites with a banded D that takes
    O(m n) memory and work a lane for each band (and pair of bands that share weights), and is exact
    where J connects no units with different weights, as in diagonal recurrences. Sites with a dense D,
    and all sites with a higher order, hold all n m g entries and cost as much as `rtrl`.

    Biased, without noise. It is `rtrl` where the pattern is full: with order 2 already if J is dense.
    The pattern is that of the step's operations: a zero among the weights is not seen.

    Raises:
      ValueError: if order is less than 1.
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")

    def init(structure: Structure) -> SnapState:
        b, n, dtype = structure.batch_size, structure.state_size, structure.dtype
        influence: list[Matrix] = []
        for site in structure.sites:
            m, g = site.input_size, site.output_size
            if order == 1 and site.bands is not None:
                values = jnp.zeros((b, m, *site.bands.array.shape), dtype)
                influence.append(Banded(values, site.bands, g))
            else:
                influence.append(Dense(jnp.zeros((b, m, n, g), dtype)))
        return SnapState(tuple(influence))

    def push(state: SnapState, linearization: Linearization, key: Key) -> SnapState:
        del key
        jacobian = linearization.jacobian
        return SnapState(
            tuple(
                _push_banded(g, jacobian, site)
                if isinstance(g, Banded)
                else _push_dense(g, jacobian, site, order)
                for g, site in zip(state.influence, linearization.sites)
            )
        )

    def pull(state: SnapState, cotangent: Array) -> SiteGradients:
        return tuple(
            jnp.einsum("bn,bmng->mg", cotangent, g.values)
            if isinstance(g, Dense)
            else jnp.sum(g.vector_times(cotangent[:, None]), axis=0)
            for g in state.influence
        )

    return InfluenceEstimator(init, push, pull)


def _push_banded(influence: Banded, jacobian: BlockColumns, site: Site) -> Banded:
    """Entries of one column of G, which belong to one weight, meet through those of J between them."""
    rows = influence.rows_of_columns()
    immediate = site.input[:, :, None, None] * site.derivative.values[:, None]
    values = []
    for band, columns in enumerate(influence.columns.array):
        value = immediate[:, :, band]
        for other in range(influence.bands):
            same_column = np.where(columns >= 0, rows[other][columns], -1)
            if np.any(same_column >= 0):
                through = _entries(jacobian, same_column)[..., None, :]
                value = value + through * take(influence.values[:, :, other], same_column, -1)
        values.append(value)
    return dataclasses.replace(influence, values=jnp.stack(values, axis=2)) if values else influence


def _push_dense(influence: Dense, jacobian: BlockColumns, site: Site, order: int) -> Dense:
    carried = jax.vmap(jacobian.times, in_axes=1, out_axes=1)(influence.values)
    new = carried + site.input[:, :, None, None] * site.derivative.dense()[:, None]
    return Dense(jnp.where(_reach(jacobian, site.derivative, order), new, 0))


def _entries(jacobian: BlockColumns, columns: np.ndarray) -> Array:
    """J[i, columns[i]] for every row i, 0 where it is -1: [B, n], or [n] if all are 0."""
    start, total = 0, jnp.zeros(len(columns))
    for block in jacobian.blocks:
        stop = start + block.shape[1]
        here = np.where((columns >= start) & (columns < stop), columns - start, -1)
        start = stop
        if isinstance(block, Banded):
            for band, present in enumerate((block.columns.array == here) & (here >= 0)):
                if np.any(present):
                    total = total + jnp.where(present, block.values[:, band], 0)
        elif np.any(here >= 0):
            entries = block.values[:, np.arange(len(here)), np.maximum(here, 0)]
            total = total + jnp.where(here >= 0, entries, 0)
    return total


def _pattern(matrix: Matrix) -> np.ndarray:
    """Where a matrix can be non-zero, [rows, columns]."""
    pattern = np.ones(matrix.shape, bool)
    if isinstance(matrix, Banded):
        pattern[:] = False
        for columns in matrix.columns.array:
            present = np.flatnonzero(columns >= 0)
            pattern[present, columns[present]] = True
    return pattern


def _reach(jacobian: BlockColumns, derivative: Matrix, order: int) -> np.ndarray:
    """Where D + J D + ... + J^(order - 1) D can be non-zero, [n, g]."""
    step = np.concatenate([_pattern(block) for block in jacobian.blocks], axis=1)
    reach = immediate = _pattern(derivative)
    for _ in range(order - 1):
        wider = immediate | (step @ reach)
        if np.array_equal(wider, reach):
            break
        reach = wider
    return reach
