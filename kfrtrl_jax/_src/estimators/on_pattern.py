"""What a site's weights did to the state, on a sparsity pattern: in the forms that patterns come in.

Each form pushes itself over some steps and drops what leaves its pattern at each of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Array, Linearization, Site, Structure
from kfrtrl_jax._src.matrices import Banded, BlockColumns, Dense, Index, take
from kfrtrl_jax._src.xla import materialized, outer_sum, weighted_sum_of_first


class SiteInfluence(Protocol):
    """The influence of the weights of one site on the state."""

    def push(self, linearization: Linearization, site: int) -> Self:
        """The influence after some steps, for the site of that number."""

    def pull(self, cotangent: Array) -> Array:
        """The sum over lanes of c^T G, [m, g], for c: [B, n]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OnBands(Banded):
    """ds/dW_j, n x g, of each input j, on the bands of D: values [B, m, bands, n].

    Entries of one column, which belong to one weight, meet through those of J between them.
    """

    def push(self, linearization: Linearization, site: int) -> OnBands:
        """The influence after some steps."""
        if not self.num_bands:
            return self
        meetings = _Meetings(self)
        units, columns = np.arange(self.shape[0]), self.columns.array
        carries, derivatives = _along_the_steps(
            linearization,
            site,
            (units, columns),
            meetings.coefficients,
            meetings.apply,
            meetings.compose,
        )
        # One pass over as few axes as there can be, and all that is read many times written before.
        flat = self.values.reshape(*self.values.shape[:2], -1)
        bands = range(self.num_bands)
        own_entries = materialized(jnp.concatenate([carries[x, x] for x in bands], axis=-1))
        derivatives = derivatives.reshape(*derivatives.shape[:2], -1)
        immediate = outer_sum(linearization.sites[site].inputs, derivatives)
        values = (own_entries[:, None] * flat + immediate).reshape(self.values.shape)
        others = {pair: c[:, None] for pair, c in carries.items() if pair[0] != pair[1]}
        if others:
            values = values + meetings.apply(others, self.values)
        return dataclasses.replace(self, values=values)

    def pull(self, cotangent: Array) -> Array:
        """[m, g]."""
        flat = self.values.reshape(*self.values.shape[:2], -1)
        weights = materialized(jnp.tile(cotangent, (1, self.num_bands)))
        by_row = weighted_sum_of_first(weights[:, None], flat).reshape(self.values.shape[1:])
        ones = jnp.ones_like(cotangent, shape=cotangent.shape[1:])
        return dataclasses.replace(self, values=by_row).vector_times(ones)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Everywhere(Dense):
    """ds/dW_j, n x g, of each input j, all of it: values [B, m, n, g]."""

    def push(self, linearization: Linearization, site: int) -> Everywhere:
        """The influence after some steps."""
        inputs, derivatives = linearization.sites[site]
        carried = jax.vmap(linearization.jacobian.times, in_axes=1, out_axes=1)(self.values)
        outer = jax.vmap(outer_sum, in_axes=(None, 2), out_axes=2)
        return Everywhere(carried + outer(inputs, derivatives.dense()))

    def pull(self, cotangent: Array) -> Array:
        """[m, g]."""
        return jnp.einsum("bn,bmng->mg", cotangent, self.values)


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

    def push(self, linearization: Linearization, site: int) -> OnPattern:
        """The influence after some steps."""
        rows, columns = self.rows.array, np.arange(len(self.rows.array))[:, None]
        if rows.shape[1] == linearization.jacobian.shape[0]:
            # The pattern holds all units, or has room for them.
            times = jax.vmap(linearization.jacobian.times, in_axes=1, out_axes=1)
            carried = jnp.where(rows[:, :, None] >= 0, times(self.values), 0)
            derivatives = linearization.sites[site].derivatives.entries_at(rows, columns)
        else:
            carries, derivatives = _along_the_steps(
                linearization,
                site,
                (rows, columns),
                lambda jacobian: jacobian.entries_at(rows[:, :, None], rows[:, None, :]),
                lambda carries, entries: jnp.einsum("bgrs,btgs->btgr", carries, entries),
                jnp.matmul,
            )
            carried = carries @ self.values
        inputs = linearization.sites[site].inputs
        reads = jax.vmap(lambda a: _at(a, self.inputs.array), in_axes=1, out_axes=1)(inputs)
        immediate = jax.vmap(outer_sum, in_axes=2, out_axes=1)(derivatives, reads)
        return dataclasses.replace(self, values=carried + immediate)

    def pull(self, cotangent: Array) -> Array:
        """[m, g], 0 for absent weights."""
        rows, inputs, m = self.rows.array, self.inputs.array, self.input_size
        gradient = jnp.einsum("bgr,bgrf->gf", _at(cotangent, rows), self.values)
        if _in_their_places(inputs, m):
            return gradient.T  # absent weights have no influence
        spread = jnp.zeros((len(inputs), m), gradient.dtype)
        places = np.where(inputs >= 0, inputs, m)  # past the end, where nothing is written
        return spread.at[np.arange(len(inputs))[:, None], places].set(gradient, mode="drop").T


def on_bands(structure: Structure, site: Site) -> OnBands | Everywhere:
    """A site's influence before the first step, on the bands of D; dense if D has none."""
    if site.columns is None:
        return everywhere(structure, site)
    values = jnp.zeros(
        (structure.batch_size, site.input_size, *site.columns.array.shape), structure.dtype
    )
    return OnBands(values, site.columns, site.output_size)


def everywhere(structure: Structure, site: Site) -> Everywhere:
    """A site's influence before the first step, with room for all of it."""
    shape = (site.input_size, structure.state_size, site.output_size)
    return Everywhere(jnp.zeros((structure.batch_size, *shape), structure.dtype))


def on_pattern(structure: Structure, site: Site, pattern: np.ndarray) -> OnPattern:
    """A site's influence before the first step, on a pattern [n, g] and for the weights that exist."""
    rows = padded(pattern.T)
    if 2 * rows.shape[1] > len(pattern):
        rows = np.where(pattern.T, np.arange(len(pattern)), -1)
    shape = (site.input_size, site.output_size)
    weights = np.ones(shape, bool) if site.weights_mask is None else site.weights_mask.array
    inputs = padded(weights.T)
    values = jnp.zeros((structure.batch_size, *rows.shape, inputs.shape[1]), structure.dtype)
    return OnPattern(values, Index(rows), Index(inputs), site.input_size)


def padded(present: np.ndarray) -> np.ndarray:
    """The columns of the entries of each row of a boolean matrix, then -1 up to the longest row."""
    counts = present.sum(axis=1)
    rows, columns = np.nonzero(present)
    padded = np.full((len(present), int(counts.max(initial=0))), -1)
    padded[rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)] = columns
    return padded


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

    def __init__(self, influence: OnBands):
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
