"""Sparse n-step approximation (Menick et al., 2021, arXiv:2006.07232)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    Site,
    SiteGradients,
    Structure,
)
from kfrtrl_jax._src.composition import compose
from kfrtrl_jax._src.estimators.on_pattern import (
    SiteInfluence,
    everywhere,
    on_bands,
    on_pattern,
    padded,
)
from kfrtrl_jax._src.matrices import BlockColumns, places_of_bands

# Up to this many entries in each row, a boolean matrix is multiplied entry by entry.
_FEW = 16


class SnapState(NamedTuple):
    """The influence matrix on a sparsity pattern.

    Attributes:
      influence: for every site, in the form that fits its pattern.
    """

    influence: tuple[SiteInfluence, ...]


def snap(order: int = 1) -> InfluenceEstimator:
    """G <- J G + I where a weight can reach a unit within `order` steps, 0 elsewhere.

    Where several steps are pushed at once this is as much as to push them one by one, but for patterns
    that hold more than half of the units: there the influence is exact within a push.

    The pattern of a pre-activation's weights is that of D + J D + ... + J^(order - 1) D, by which
    entries of J and D can be non-zero whatever the parameters are: fixed masks on the weights count,
    and weights that a mask takes away have no influence. With order 1 these are the places where I can
    be non-zero, with a high one all that can ever be, and then it is `rtrl`.

    A site whose g pre-activations reach r of the n state variables and have f weights each, both at
    most, takes O(g r f) memory and O(g r^2 f) work per lane: with order 1 and an element-wise cell, as
    many entries as there are weights for each of its bands. Where r is more than half of n it takes
    O(g n f) and O(g n^2 f), as much as `rtrl`. With order 2 and a dense J r is n.

    Biased, without noise; exact where J carries no influence out of the pattern.

    Raises:
      ValueError: if order is less than 1.
    """
    bounds.require("[1, inf)", order=order)

    def init(structure: Structure) -> SnapState:
        return SnapState(tuple(_empty(structure, site, order) for site in structure.sites))

    def push(state: SnapState, linearization: Linearization, key: Key) -> SnapState:
        del key
        return push_on_pattern(state, linearization)

    def pull(state: SnapState, cotangent: Array) -> SiteGradients:
        return tuple(g.pull(cotangent) for g in state.influence)

    return InfluenceEstimator(init, push, pull)


def push_on_pattern(
    state: SnapState,
    linearization: Linearization,
    jacobians: Sequence[BlockColumns] | None = None,
) -> SnapState:
    """The influence after some steps, dropping the entries that leave its pattern at each step.

    Args:
      state: the influence before them.
      linearization: of the steps.
      jacobians: what is to carry the influence in the place of J, for each single step.
    """
    if jacobians is not None:
        pairs = zip(linearization.singles, jacobians)
        linearization = compose([step._replace(jacobian=j) for step, j in pairs])
    return SnapState(tuple(g.push(linearization, site) for site, g in enumerate(state.influence)))


def reachable(structure: Structure, site: Site, order: int) -> np.ndarray:
    """Where a site's D + J D + ... + J^(order - 1) D can be non-zero, [n, g]."""
    reach = immediate = _immediate(site, structure.state_size)
    for _ in range(order - 1):
        if structure.jacobian_mask is None:
            wider = immediate | reach.any(axis=0)
        else:
            wider = immediate | _product(structure.jacobian_mask.array, reach)
        if np.array_equal(wider, reach):
            break
        reach = wider
    return reach


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where the product of matrices can be non-zero that are where these are true."""
    if left.sum(axis=1).max(initial=0) > _FEW:
        return left.astype(np.float32) @ right.astype(np.float32) > 0
    product = np.zeros((len(left), right.shape[1]), bool)
    for columns in padded(left).T:
        present = columns >= 0
        product[present] |= right[columns[present]]
    return product


def _immediate(site: Site, state_size: int) -> np.ndarray:
    """Where D can be non-zero, [n, g]."""
    if site.columns is None:
        full = np.ones((state_size, site.output_size), bool)
        return full if site.derivative_mask is None else site.derivative_mask.array
    return places_of_bands(site.columns.array, site.output_size)


def _empty(structure: Structure, site: Site, order: int) -> SiteInfluence:
    """A site's influence before the first step, in the form that holds its pattern."""
    every_weight = site.weights_mask is None
    # The bands of several uses are mostly empty: each row has an entry of one of them.
    on_few_bands = every_weight and site.columns is not None and site.uses == 1
    if on_few_bands and order == 1:
        return on_bands(structure, site)
    pattern = reachable(structure, site, order)
    if on_few_bands and np.array_equal(pattern, _immediate(site, structure.state_size)):
        return on_bands(structure, site)
    if every_weight and pattern.all():
        return everywhere(structure, site)
    return on_pattern(structure, site, pattern)
