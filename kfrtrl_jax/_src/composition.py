"""Composition: the linearization of T steps is again a linearization.

With Q_t = J_T .. J_{t+1} and Q_T = 1,

    ds_T = J_T .. J_1 ds_0 + sum_t sum_k a_{k,t} (x) (Q_t D_{k,t}) dW_k,

a Jacobian and T Kronecker products for each site in place of one. Q_t D_t is not multiplied out
while D_t is banded. A lane that starts anew at step t has J_t = 0, and what came before vanishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Linearization, SiteJacobian
from kfrtrl_jax._src.matrices import (
    Banded,
    BlockColumns,
    BlockRows,
    Composed,
    Dense,
    Group,
    Matrix,
    Shared,
    Terms,
    plain,
    spans,
    total,
)
from kfrtrl_jax._src.matrices import (
    compose as product,
)
from kfrtrl_jax._src.xla import materialized

# A product of banded matrices with more bands than this is one of dense ones.
_MAX_BANDS = 8


def compose(steps: Linearization | Sequence[Linearization]) -> Linearization:
    """The linearization of several steps.

    Args:
      steps: in the order in which they were made: linearizations of the same cell, or one of them whose
        arrays have a leading axis of steps, as `jax.lax.scan` gives it.

    Returns:
      A linearization with the terms of all steps. A single step is returned as it is.

    Raises:
      ValueError: if there are no steps.
    """
    if isinstance(steps, Linearization):
        count = len(steps.keep)
        steps = [jax.tree.map(lambda x, t=t: x[t], steps) for t in range(count)]
    steps = list(steps)
    if not steps:
        raise ValueError("compose needs at least one step")
    if len(steps) == 1:
        return steps[0]
    steps = _without_forgotten_lanes([single for step in steps for single in step.singles])
    jacobian, derivatives = _composed(
        [step.jacobian for step in steps],
        [[site.derivatives for site in step.sites] for step in steps],
    )
    inputs = [
        jnp.concatenate([site.inputs for site in sites], axis=1)
        for sites in zip(*(step.sites for step in steps))
    ]
    keep = steps[0].keep
    for step in steps[1:]:
        keep = keep * step.keep
    return Linearization(
        jacobian=jacobian,
        sites=tuple(map(SiteJacobian, inputs, derivatives)),
        leak=BlockColumns(_chain([step.leak for step in steps[::-1]])[-1].blocks),
        keep=keep,
        steps=tuple(steps),
    )


def on_leak(linearization: Linearization) -> Linearization:
    """The same steps as if the leak were all of J."""
    return compose([step._replace(jacobian=step.leak) for step in linearization.singles])


def _without_forgotten_lanes(steps: Sequence[Linearization]) -> list[Linearization]:
    """The steps, set to 0 in the lanes that start anew later, as the values may be infinite."""
    kept = [steps[-1]]
    later = steps[-1].keep
    for step in reversed(steps[:-1]):
        kept.append(_kept(step, later))
        later = later * step.keep
    return kept[::-1]


def _kept(step: Linearization, keep: Array) -> Linearization:
    return step._replace(
        jacobian=step.jacobian.kept(keep),
        leak=step.leak.kept(keep),
        sites=tuple(
            SiteJacobian(jnp.where(keep[:, None, None] == 0, 0, inputs), derivatives.kept(keep))
            for inputs, derivatives in step.sites
        ),
    )


def _composed(
    jacobians: Sequence[BlockColumns], derivatives: Sequence[Sequence[Terms]]
) -> tuple[BlockColumns, tuple[Terms, ...]]:
    """J_T .. J_1 and, for every site, all Q_t D_t."""
    *later, whole = _chain(jacobians[::-1])
    groups: list[list[Group]] = [list(terms.groups) for terms in derivatives[-1]]
    for q, of_step in zip(later, derivatives[-2::-1]):
        for site, terms in enumerate(of_step):
            groups[site][:0] = [_after(q, group) for group in terms.groups]
    return BlockColumns(whole.blocks), tuple(Terms(tuple(of_site)) for of_site in groups)


class _Product(NamedTuple):
    """A product of Jacobians Q.

    Attributes:
      blocks: of columns.
      dense: all of it, [B, n, n]; None if all blocks are banded.
    """

    blocks: tuple[Matrix, ...]
    dense: Array | None


def _product_of(blocks: tuple[Matrix, ...]) -> _Product:
    if _is_banded(blocks):
        return _Product(blocks, None)
    dense = BlockColumns(blocks).dense()
    # Assembled once; otherwise every loop that reads it would do so.
    return _Product(blocks, dense if len(blocks) == 1 else materialized(dense))


def _chain(jacobians: Sequence[BlockColumns]) -> list[_Product]:
    """Q_{T-1} = J_T, Q_{T-2} = J_T J_{T-1}, .., J_T .. J_1, for J_T .. J_1."""
    factors = [tuple(map(plain, jacobian.blocks)) for jacobian in jacobians]
    chain = [_product_of(factors[0])]
    for blocks in factors[1:]:
        chain.append(_product_of(_times(chain[-1], blocks)))
    return chain


def _times(q: _Product, blocks: tuple[Matrix, ...]) -> tuple[Matrix, ...]:
    """Q J by blocks, banded if both are and few bands come of it."""
    if q.dense is not None:
        whole = Dense(q.dense)
        return tuple(product(whole, block) for block in blocks)
    if not _is_banded(blocks):
        whole = Dense(BlockColumns(q.blocks).dense())
        return tuple(product(whole, block) for block in blocks)
    rows = spans(block.shape[1] for block in q.blocks)
    return tuple(
        total([product(left, block.rows(*r)) for left, r in zip(q.blocks, rows)], *block.shape)
        for block in blocks
    )


def _after(q: _Product, group: Group) -> Group:
    """Q D for each D of a group of a single step, n x g, [*terms, B, ...]."""
    assert not isinstance(group, Composed)
    if isinstance(group, BlockRows):
        group = plain(group)
    if isinstance(group, Shared):
        whole = _after(q, group.whole)
        assert not isinstance(whole, (BlockRows, Shared))
        return Shared(whole, group.count)
    if q.dense is None:
        rows = spans(block.shape[1] for block in q.blocks)
        parts = [product(left, group.rows(*r)) for left, r in zip(q.blocks, rows)]
        return total(parts, *group.shape)
    if isinstance(group, Dense):
        return Dense(q.dense @ group.values)
    axes = (1,) * (len(group.lead) - 1)
    return Composed(q.dense.reshape(*axes, *q.dense.shape), group)


def _is_banded(blocks: Sequence[Matrix]) -> bool:
    return all(isinstance(b, Banded) and b.num_bands <= _MAX_BANDS for b in blocks)
