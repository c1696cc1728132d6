"""Many steps as one: the linearization of T steps is again a linearization.

With Q_t = J_T .. J_{t+1} and Q_T = 1,

    ds_T = J_T .. J_1 ds_0 + sum_t sum_k a_{k,t} (x) (Q_t D_{k,t}) dW_k,

a Jacobian and T Kronecker products for each site in place of one. The products Q_t D_t are not made as
long as D_t is banded. A lane that starts anew at step t has J_t = 0, and what came before vanishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Linearization, SiteJacobian
from kfrtrl_jax._src.matrices import (
    Banded,
    BlockColumns,
    Composed,
    Dense,
    Matrix,
    Terms,
    spans,
    total,
)
from kfrtrl_jax._src.matrices import (
    compose as product,
)

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
    steps = _without_what_is_forgotten([single for step in steps for single in step.singles])
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
        leak=_chain([step.leak for step in steps[::-1]])[-1],
        keep=keep,
        steps=tuple(steps),
    )


def on_leak(linearization: Linearization) -> Linearization:
    """The same steps as if the leak were all of J."""
    return compose([step._replace(jacobian=step.leak) for step in linearization.singles])


def _without_what_is_forgotten(steps: Sequence[Linearization]) -> list[Linearization]:
    """The steps, 0 in the lanes that start anew later: chosen, as what stands there may be infinite."""
    kept = [steps[-1]]
    later = steps[-1].keep
    for step in reversed(steps[:-1]):
        kept.append(_kept(step, later))
        later = later * step.keep
    return kept[::-1]


def _kept(step: Linearization, keep: Array) -> Linearization:
    def terms(of_site: Terms) -> Terms:
        return Terms(
            tuple(group.kept(jnp.broadcast_to(keep, group.lead)) for group in of_site.groups)
        )

    return step._replace(
        jacobian=step.jacobian.kept(keep),
        leak=step.leak.kept(keep),
        sites=tuple(
            SiteJacobian(
                jnp.where(keep[:, None, None] == 0, 0, site.inputs), terms(site.derivatives)
            )
            for site in step.sites
        ),
    )


def _composed(
    jacobians: Sequence[BlockColumns], derivatives: Sequence[Sequence[Terms]]
) -> tuple[BlockColumns, tuple[Terms, ...]]:
    """J_T .. J_1 and, for every site, all Q_t D_t."""
    *later, whole = _chain(jacobians[::-1])
    groups: list[list[Any]] = [list(terms.groups) for terms in derivatives[-1]]
    for q, of_step in zip(later, derivatives[-2::-1]):
        for site, terms in enumerate(of_step):
            groups[site][:0] = [_after(q, group) for group in terms.groups]
    return whole, tuple(Terms(tuple(of_site)) for of_site in groups)


def _chain(jacobians: Sequence[BlockColumns]) -> list[BlockColumns]:
    """Q_{T-1} = J_T, Q_{T-2} = J_T J_{T-1}, .., J_T .. J_1, for J_T .. J_1."""
    chain = [BlockColumns(jacobians[0].blocks)]
    for jacobian in jacobians[1:]:
        chain.append(_times(chain[-1], jacobian))
    return chain


def _times(q: BlockColumns, jacobian: BlockColumns) -> BlockColumns:
    """Q J, banded if both are and few bands come of it."""
    blocks = jacobian.blocks
    if _is_banded(q.rest) and _is_banded(blocks):
        rows = spans(block.shape[1] for block in q.rest)
        found = [
            total(
                [product(left, block.rows(*r)) for left, r in zip(q.rest, rows)],
                block.shape[0],
                block.shape[1],
            )
            for block in blocks
        ]
        if _is_banded(found):
            return BlockColumns(tuple(found))
    whole = Dense(q.dense())
    return BlockColumns(tuple(product(whole, block) for block in blocks))


def _is_banded(blocks: Sequence[Matrix]) -> bool:
    return all(isinstance(b, Banded) and b.num_bands <= _MAX_BANDS for b in blocks)


def _after(q: BlockColumns, group: Dense | Banded | Composed) -> Dense | Banded | Composed:
    """Q D for each D of a group, n x g, [*terms, B, ...]."""
    if isinstance(group, Composed):
        return Composed(q.dense() @ group.left, group.right)
    if _is_banded(q.rest):
        rows = spans(block.shape[1] for block in q.rest)
        return total([product(left, group.rows(*r)) for left, r in zip(q.rest, rows)], *group.shape)
    if isinstance(group, Dense):
        return Dense(q.dense() @ group.values)
    axes = (1,) * (len(group.lead) - 1)
    dense = q.dense()
    return Composed(dense.reshape(*axes, *dense.shape), group)
