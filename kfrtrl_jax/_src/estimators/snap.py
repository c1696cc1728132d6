"""Sparse n-step approximation (Menick et al., 2021, arXiv:2006.07232)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

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
from kfrtrl_jax._src.matrices import (
    Banded,
    BlockColumns,
    Dense,
    Index,
    Matrix,
    places_of_bands,
    take,
)
from kfrtrl_jax._src.xla import materialized, outer_sum, weighted_sum_of_first


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OnPattern:
    """The influence of a site's weights on the state variables that they can reach.

    All weights W_jl into one pre-activation l reach the same ones.

    Attributes:
      values: ds_i/dW_jl for i = rows[l, :] and j = inputs[l, :], [B, g, r, f]; 0 where either is -1.
      rows: [g, r], static: the state variables that each pre-activation reaches, -1 for none; in their
        places where r is n.
      inputs: [g, f], static: the inputs that each pre-activation has weights for, -1 for none.
      input_size: m, static.
    """

    values: Array
    rows: Index = dataclasses.field(metadata={"static": True})
    inputs: Index = dataclasses.field(metadata={"static": True})
    input_size: int = dataclasses.field(metadata={"static": True})


class SnapState(NamedTuple):
    """The influence matrix on a sparsity pattern.

    Attributes:
      influence: for every site either the matrix ds/dW_j, n x g, of each input j: values
        [B, m, bands, n] where it has the bands of D, [B, m, n, g] where it is full; or the influence
        on another pattern.
    """

    influence: tuple[Matrix | OnPattern, ...]


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
    O(g n f) and O(g n^2 f), `rtrl` without the absent weights. With order 2 and a dense J r is n.

    Biased, without noise; exact where J carries no influence out of the pattern.

    Raises:
      ValueError: if order is less than 1.
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")

    def init(structure: Structure) -> SnapState:
        return SnapState(
            tuple(_empty_influence(structure, site, order) for site in structure.sites)
        )

    def push(state: SnapState, linearization: Linearization, key: Key) -> SnapState:
        del key
        return push_on_pattern(state, linearization)

    def pull(state: SnapState, cotangent: Array) -> SiteGradients:
        return tuple(_pull(g, cotangent) for g in state.influence)

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
    return SnapState(tuple(_push(g, linearization, site) for site, g in enumerate(state.influence)))


def reachable(structure: Structure, site: Site, order: int) -> np.ndarray:
    """Where a site's D + J D + ... + J^(order - 1) D can be non-zero, [n, g]."""
    reach = immediate = _immediate(site, structure.state_size)
    for _ in range(order - 1):
        if structure.jacobian_mask is None:
            wider = immediate | reach.any(axis=0)
        else:
            step = structure.jacobian_mask.array.astype(np.float32)
            wider = immediate | (step @ reach.astype(np.float32) > 0)
        if np.array_equal(wider, reach):
            break
        reach = wider
    return reach


def _immediate(site: Site, state_size: int) -> np.ndarray:
    """Where D can be non-zero, [n, g]."""
    if site.columns is None:
        full = np.ones((state_size, site.output_size), bool)
        return full if site.derivative_mask is None else site.derivative_mask.array
    return places_of_bands(site.columns.array, site.output_size)


def _padded(present: np.ndarray) -> np.ndarray:
    """The columns of the entries of each row of a boolean matrix, then -1 up to the longest row."""
    longest = int(present.sum(axis=1).max(initial=0))
    first = np.argsort(~present, axis=1, kind="stable")[:, :longest]
    return np.where(np.take_along_axis(present, first, axis=1), first, -1)


def _empty_influence(structure: Structure, site: Site, order: int) -> Matrix | OnPattern:
    """A site's influence before the first step, in the form that holds its pattern."""
    m, g = site.input_size, site.output_size

    def zeros(*shape: int) -> Array:
        return jnp.zeros((structure.batch_size, *shape), structure.dtype)

    reach, every_weight = reachable(structure, site, order), site.weights_mask is None
    stays = np.array_equal(reach, _immediate(site, structure.state_size))
    # The bands of several uses are mostly empty: each row has an entry of one of them.
    if every_weight and stays and site.columns is not None and site.uses == 1:
        return on_bands(structure, site)
    if every_weight and reach.all():
        return Dense(zeros(m, *reach.shape))
    rows = _padded(reach.T)
    if 2 * rows.shape[1] > len(reach):
        rows = np.where(reach.T, np.arange(len(reach)), -1)
    weights = np.ones((m, g), bool) if site.weights_mask is None else site.weights_mask.array
    inputs = _padded(weights.T)
    return OnPattern(zeros(*rows.shape, inputs.shape[1]), Index(rows), Index(inputs), m)


def on_bands(structure: Structure, site: Site) -> Matrix:
    """A site's influence before the first step, on the bands of D; dense if D has none."""
    b, m, n, g = structure.batch_size, site.input_size, structure.state_size, site.output_size
    if site.columns is None:
        return Dense(jnp.zeros((b, m, n, g), structure.dtype))
    values = jnp.zeros((b, m, *site.columns.array.shape), structure.dtype)
    return Banded(values, site.columns, g)


def _push(
    influence: Matrix | OnPattern, linearization: Linearization, site: int
) -> Matrix | OnPattern:
    if isinstance(influence, Banded):
        return _push_banded(influence, linearization, site)
    if isinstance(influence, OnPattern):
        if influence.rows.array.shape[1] == linearization.jacobian.shape[0]:
            return _push_in_place(influence, linearization, site)
        return _push_on_pattern(influence, linearization, site)
    inputs, derivatives = linearization.sites[site]
    carried = jax.vmap(linearization.jacobian.times, in_axes=1, out_axes=1)(influence.values)
    outer = jax.vmap(outer_sum, in_axes=(None, 2), out_axes=2)
    return Dense(carried + outer(inputs, derivatives.dense()))


def _pull(influence: Matrix | OnPattern, cotangent: Array) -> Array:
    if isinstance(influence, Banded):
        flat = influence.values.reshape(*influence.values.shape[:2], -1)
        weights = materialized(jnp.tile(cotangent, (1, influence.num_bands)))
        by_row = weighted_sum_of_first(weights[:, None], flat).reshape(influence.values.shape[1:])
        return dataclasses.replace(influence, values=by_row).vector_times(
            jnp.ones_like(cotangent, shape=cotangent.shape[1:])
        )
    if isinstance(influence, OnPattern):
        return _pull_on_pattern(influence, cotangent)
    return jnp.einsum("bn,bmng->mg", cotangent, influence.values)


def _push_banded(influence: Banded, linearization: Linearization, site: int) -> Banded:
    """Entries of one column of G, which belong to one weight, meet through those of J between them."""
    if not influence.num_bands:
        return influence
    meetings = _Meetings(influence)
    units, columns = np.arange(influence.shape[0]), influence.columns.array
    carries, derivatives = _along_the_steps(
        linearization,
        site,
        (units, columns),
        meetings.coefficients,
        meetings.apply,
        meetings.compose,
    )
    # One pass over as few axes as there can be, and all that is read many times written before.
    flat = influence.values.reshape(*influence.values.shape[:2], -1)
    bands = range(influence.num_bands)
    own_entries = materialized(jnp.concatenate([carries[x, x] for x in bands], axis=-1))
    derivatives = derivatives.reshape(*derivatives.shape[:2], -1)
    immediate = outer_sum(linearization.sites[site].inputs, derivatives)
    values = (own_entries[:, None] * flat + immediate).reshape(influence.values.shape)
    others = {pair: c[:, None] for pair, c in carries.items() if pair[0] != pair[1]}
    if others:
        values = values + meetings.apply(others, influence.values)
    return dataclasses.replace(influence, values=values)


_C = TypeVar("_C")


def _along_the_steps(
    linearization: Linearization,
    site: int,
    places: tuple[np.ndarray, np.ndarray],
    carries_of: Callable[[BlockColumns], _C],
    apply: Callable[[_C, Array], Array],
    compose: Callable[[_C, _C], _C],
) -> tuple[_C, Array]:
    """What carries influence on a pattern over all steps, and the D of all of them there at the end.

    Args:
      linearization: of the steps.
      site: whose D.
      places: the rows and columns of the pattern's entries.
      carries_of: from a step's J to what carries the entries over it.
      apply: (what carries, entries [B, T, ...]) -> the entries after that.
      compose: (later, earlier) -> what carries over both.
    """
    # Backward: what carries a step's entries to the end is made of that of the step after it.
    carries: _C | None = None
    terms: list[Array] = []
    for step in reversed(linearization.singles):
        entries = step.sites[site].derivatives.entries_at(*places)
        terms.insert(0, entries if carries is None else apply(carries, entries))
        own = carries_of(step.jacobian)
        carries = own if carries is None else compose(carries, own)
        # Written out, or each step would find those of all later ones again.
        carries = jax.tree.map(materialized, carries)
    assert carries is not None
    return carries, jnp.concatenate(terms, axis=1)


# By bands (x, y): what carries an entry of band y to the entry of its column in band x, [B, n].
_Coefficients = dict[tuple[int, int], Array]


class _Meetings:
    """Where entries of one column meet: entry i of band x and entry `partner[x, y][i]` of band y."""

    def __init__(self, influence: Banded):
        self.size, self.bands = influence.shape[0], range(influence.num_bands)
        rows = influence.rows_of_columns()
        self.partner: dict[tuple[int, int], np.ndarray] = {}
        for x, columns in enumerate(influence.columns.array):
            for y in self.bands:
                same_column = np.where(columns >= 0, rows[y][columns], -1)
                if x == y:
                    same_column = np.arange(self.size)
                if np.any(same_column >= 0):
                    self.partner[x, y] = same_column

    def coefficients(self, jacobian: BlockColumns) -> _Coefficients:
        """The coefficients of J."""
        diagonal = jacobian.diagonal()
        return {
            (x, y): diagonal if x == y else jacobian.entries_at(np.arange(self.size), rows)
            for (x, y), rows in self.partner.items()
        }

    def compose(self, second: _Coefficients, first: _Coefficients) -> _Coefficients:
        """The coefficients of the composition."""
        result: _Coefficients = {}
        for (x, y), later in second.items():
            for z in self.bands:
                if (y, z) in first:
                    term = later * take(first[y, z], self.partner[x, y], axis=-1)
                    result[x, z] = result[x, z] + term if (x, z) in result else term
        return result

    def apply(self, coefficients: _Coefficients, values: Array) -> Array:
        """The entries, [B, any, bands, n], carried on."""
        result = [jnp.zeros_like(values[:, :, x]) for x in self.bands]
        for (x, y), c in coefficients.items():
            met = take(values[:, :, y], self.partner[x, y], axis=-1)
            result[x] = result[x] + c.reshape(len(c), 1, -1) * met
        return jnp.stack(result, axis=2)


def _push_in_place(influence: OnPattern, linearization: Linearization, site: int) -> OnPattern:
    """For a pattern that holds all units, or has room for them."""
    rows = influence.rows.array
    carried = jax.vmap(linearization.jacobian.times, in_axes=1, out_axes=1)(influence.values)
    carried = jnp.where(rows[:, :, None] >= 0, carried, 0)
    derivatives = linearization.sites[site].derivatives.entries_at(
        rows, np.arange(len(rows))[:, None]
    )
    return _with_immediate(influence, carried, linearization.sites[site].inputs, derivatives)


def _push_on_pattern(influence: OnPattern, linearization: Linearization, site: int) -> OnPattern:
    rows = influence.rows.array
    carries, derivatives = _along_the_steps(
        linearization,
        site,
        (rows, np.arange(len(rows))[:, None]),
        lambda jacobian: jacobian.entries_at(rows[:, :, None], rows[:, None, :]),
        lambda carries, entries: jnp.einsum("bgrs,btgs->btgr", carries, entries),
        jnp.matmul,
    )
    inputs = linearization.sites[site].inputs
    return _with_immediate(influence, carries @ influence.values, inputs, derivatives)


def _with_immediate(
    influence: OnPattern, carried: Array, inputs: Array, derivatives: Array
) -> OnPattern:
    """What is carried on, and the sum of the new terms, derivatives [B, T, g, r]."""
    reads = jax.vmap(lambda a: _at(a, influence.inputs.array), in_axes=1, out_axes=1)(inputs)
    immediate = jax.vmap(outer_sum, in_axes=2, out_axes=1)(derivatives, reads)
    return dataclasses.replace(influence, values=carried + immediate)


def _pull_on_pattern(influence: OnPattern, cotangent: Array) -> Array:
    """[m, g], 0 for absent weights."""
    rows, inputs, m = influence.rows.array, influence.inputs.array, influence.input_size
    gradient = jnp.einsum("bgr,bgrf->gf", _at(cotangent, rows), influence.values)
    if _in_their_places(inputs, m):
        return gradient.T  # absent weights have no influence
    spread = jnp.zeros((len(inputs), m), gradient.dtype)
    places = np.where(inputs >= 0, inputs, m)  # past the end, where nothing is written
    return spread.at[np.arange(len(inputs))[:, None], places].set(gradient, mode="drop").T


def _at(x: Array, indices: np.ndarray) -> Array:
    """`x`: [B, k] at static indices of any shape, 0 where they are -1: [B, ...]."""
    if _in_their_places(indices, x.shape[1]):
        x = x.reshape(len(x), *[1] * (indices.ndim - 1), -1)
        picked = jnp.broadcast_to(x, (len(x), *indices.shape))
    else:
        picked = jnp.take(x, np.maximum(indices, 0), axis=1)
    return picked if np.all(indices >= 0) else jnp.where(indices >= 0, picked, 0)


def _in_their_places(indices: np.ndarray, size: int) -> bool:
    """Whether the last axis holds 0 to size - 1 in order, or -1."""
    whole = np.arange(size)
    return indices.shape[-1] == size and bool(np.all((indices == whole) | (indices < 0)))
