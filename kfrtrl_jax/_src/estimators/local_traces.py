"""Traces that each unit keeps by itself: no recurrent weight carries influence.

RFLO (Murray, 2019, eLife 8:e43299) and e-prop (Bellec et al., 2020, Nature Communications 11:3625).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import InfluenceEstimator, Key, Linearization, Structure
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.estimators.snap import SnapState, push_on_pattern, snap
from kfrtrl_jax._src.matrices import Banded, BlockColumns, Matrix, plain


def e_prop() -> InfluenceEstimator:
    """G <- L G + I on the entries of I, where L, the leak, is J without paths through products.

    If several steps are pushed at once, L and I are those of the composed steps with only their leaks
    between them.

    The eligibility trace passes through all variables of the unit's own state (both of an LSTM unit's),
    element-wise weights included, and through no recurrent weight matrix; the learning signal is the
    loss's gradient by the present state (symmetric e-prop). A cell without such a path, such as the
    tanh network, keeps I alone. A variable of the unit that no weight reaches within a step has no
    entry in I, and no trace. For one layer of spiking units whose reset has a derivative this is also
    OSTL without the gradient through recurrent weights (Bohnstingl et al., 2020, arXiv:2007.12723).

    Biased, without noise; O(m n) memory and work per lane for each band. Its init raises
    UnsupportedCellError for a cell whose pre-activations do not reach the state element-wise.
    """
    return _carried_by(lambda step: step.leak)


def rflo() -> InfluenceEstimator:
    """G <- diag(l) G + I on the entries of I, where l is each state variable's own leak.

    Like `e_prop`, but without exchange between the variables of a unit. The true readout weights stand
    in for random feedback. Biased, without noise; O(m n) memory and work per lane for each band.
    """
    return _carried_by(lambda step: _diagonal(step.leak))


def _carried_by(carries: Callable[[Linearization], BlockColumns]) -> InfluenceEstimator:
    """`snap(order=1)` with another matrix in place of J."""
    local = snap(order=1)

    def init(structure: Structure) -> SnapState:
        require_local(structure)
        return local.init(structure)

    def push(state: SnapState, linearization: Linearization, key: Key) -> SnapState:
        del key
        jacobians = [carries(step) for step in linearization.singles]
        return push_on_pattern(state, linearization, jacobians)

    return InfluenceEstimator(init, push, local.pull)


def require_local(structure: Structure) -> None:
    """Refuses a cell whose pre-activations do not reach the state element-wise.

    Raises:
      UnsupportedCellError: naming the parameters.
    """
    for site in structure.sites:
        if site.columns is None:
            often = f", which a step uses {site.uses} times," if site.uses > 1 else ""
            raise UnsupportedCellError(
                f"a trace local to each unit needs element-wise derivatives, but those by the "
                f"pre-activation of {site.label}{often} are not; use rtrl, uoro or kf_rtrl"
            )


def _diagonal(matrix: BlockColumns) -> BlockColumns:
    """The diagonal entries of a square matrix, 0 elsewhere."""
    blocks: list[Matrix] = []
    start = 0
    for block in map(plain, matrix.blocks):
        stop = start + block.shape[1]
        own = np.arange(block.shape[0]) - start
        own = np.where((own >= 0) & (own < block.shape[1]), own, -1)
        if isinstance(block, Banded):
            here = (block.columns.array == own) & (own >= 0)
        else:
            here = np.arange(block.shape[1]) == own[:, None]
        blocks.append(dataclasses.replace(block, values=jnp.where(here, block.values, 0)))
        start = stop
    return BlockColumns(tuple(blocks))
