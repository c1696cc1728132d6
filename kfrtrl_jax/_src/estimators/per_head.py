"""An estimator for each head of a block-diagonal weight by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    Site,
    SiteGradients,
    SiteJacobian,
    Structure,
)
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.estimators.parts_of_sites import jacobian_of, part_of
from kfrtrl_jax._src.matrices import Index

# The program grows with the number of heads.
MAX_HEADS = 64


class Head(NamedTuple):
    """A head's place in the matrix of all.

    Attributes:
      inputs: [m of the head], the rows of W.
      columns: [g of the head].
    """

    inputs: Index
    columns: Index

    @property
    def place(self) -> tuple[np.ndarray, np.ndarray]:
        """In W, as NumPy indexes it."""
        rows, columns = np.ix_(self.inputs.array, self.columns.array)
        return rows, columns


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Heads:
    """The heads of every site; in a state it is static.

    Attributes:
      shapes: (m, g) of every site.
      of_sites: its heads; () if it has none.
    """

    shapes: tuple[tuple[int, int], ...]
    of_sites: tuple[tuple[Head, ...], ...]


class PerHeadState(NamedTuple):
    """The state of an estimator that sees each head as a site.

    Attributes:
      inner: the estimator's state.
      heads: where they are.
    """

    inner: Any
    heads: Heads


def per_head(estimator: InfluenceEstimator) -> InfluenceEstimator:
    """The estimator, with each head of a block-diagonal weight as a site of its own.

    Heads are found as one product with a matrix that is zero outside of its blocks, so that all heads
    of a weight share the Kronecker products of `ok` and `kf_rtrl`. Here each has its own: of `ok` this
    leaves less noise for the same memory. The work is the same, in as many smaller products as there
    are heads, which takes a CPU more time. Other sites are left as they are.

    Its init raises UnsupportedCellError for a cell without such weights, or with more than 64 heads.

    Args:
      estimator: what is unbiased stays so.
    """

    def init(structure: Structure) -> PerHeadState:
        of_sites = tuple(heads_of(site) for site in structure.sites)
        if not any(of_sites):
            raise UnsupportedCellError(
                "per_head cannot use this cell: none of its weights is block-diagonal, in 2 to "
                f"{MAX_HEADS} blocks of one size; use the estimator without per_head"
            )
        shapes = tuple((site.input_size, site.output_size) for site in structure.sites)

        def apart(site: Site, head: Head) -> Site:
            return part_of(site, head.columns.array, inputs=head.inputs.array)

        sites = tuple(_each(structure.sites, of_sites, apart))
        return PerHeadState(
            estimator.init(structure._replace(sites=sites)), Heads(shapes, of_sites)
        )

    def push(state: PerHeadState, linearization: Linearization, key: Key) -> PerHeadState:
        def apart(site: SiteJacobian, head: Head) -> SiteJacobian:
            return jacobian_of(site, head.columns.array, inputs=head.inputs.array)

        of_sites = state.heads.of_sites
        linearization = linearization.with_sites(lambda sites: tuple(_each(sites, of_sites, apart)))
        return state._replace(inner=estimator.push(state.inner, linearization, key))

    def pull(state: PerHeadState, cotangent: Float[Array, "B n"]) -> SiteGradients:
        blocks = iter(estimator.pull(state.inner, cotangent))
        return tuple(
            _together(shape, heads, blocks) if heads else next(blocks)
            for shape, heads in zip(state.heads.shapes, state.heads.of_sites)
        )

    def diagnostics(state: PerHeadState) -> dict[str, Array]:
        return estimator.diagnostics(state.inner)

    def observe(state: PerHeadState, cotangents: Float[Array, "U B n"]) -> PerHeadState:
        return state._replace(inner=estimator.observe(state.inner, cotangents))

    return InfluenceEstimator(init, push, pull, diagnostics, observe)


def heads_of(site: Site) -> tuple[Head, ...]:
    """The heads of a site's weights; () if these have no blocks, or not of one size, or too many."""
    if site.weights_mask is None:
        return ()
    patterns, of_columns = np.unique(site.weights_mask.array, axis=1, return_inverse=True)
    of_columns = of_columns.reshape(-1)
    # The inputs that all heads read are not theirs alone; zeros elsewhere are a sparse matrix's.
    readers, count = patterns.sum(axis=1), patterns.shape[1]
    if not (2 <= count <= MAX_HEADS and np.isin(readers, (0, 1, count)).all()):
        return ()
    if len(set(patterns.sum(axis=0))) > 1 or len(set(np.bincount(of_columns))) > 1:
        return ()
    found = [
        Head(Index(np.flatnonzero(pattern)), Index(np.flatnonzero(of_columns == i)))
        for i, pattern in enumerate(patterns.T)
    ]
    return tuple(sorted(found, key=lambda head: head.columns.array[0]))


_S = TypeVar("_S")


def _each(
    sites: Sequence[_S], heads: Sequence[tuple[Head, ...]], apart: Callable[[_S, Head], _S]
) -> Iterator[_S]:
    """The sites, each that has heads as a site for each of them."""
    for site, of_site in zip(sites, heads):
        yield from [apart(site, head) for head in of_site] or [site]


def _together(
    shape: tuple[int, int], heads: Sequence[Head], blocks: Iterator[Array]
) -> Float[Array, "m g"]:
    """The gradient of all heads of a site, from that of each."""
    first = next(blocks)
    whole = jnp.zeros(shape, first.dtype).at[heads[0].place].set(first)
    for head in heads[1:]:
        whole = whole.at[head.place].set(next(blocks))
    return whole
