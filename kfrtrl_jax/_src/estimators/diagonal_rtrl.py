"""Exact RTRL of diagonal recurrences (Zucchet et al., 2023, arXiv:2305.15947)."""

from __future__ import annotations

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import InfluenceEstimator, Structure
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.estimators.snap import SnapState, reachable, snap


def diagonal_rtrl(unit_size: int = 2) -> InfluenceEstimator:
    """G <- J G + I, exactly, if no weight ever influences more than `unit_size` state variables.

    That holds if J couples no two units. A unit is one variable of an element-wise recurrence, the real
    and imaginary parts of a complex variable, or the variables of a gated unit. G then has at most
    `unit_size` entries per weight, and the cost is that of `snap`: O(unit_size P) memory and
    O(unit_size^2 P) work per lane for P weights (Zucchet et al., 2023, arXiv:2305.15947; Irie et al.,
    2023, arXiv:2305.19044). No bias, no noise.

    Args:
      unit_size: the largest number of state variables in a unit.

    Raises:
      ValueError: if unit_size is less than 1.

    Its init raises UnsupportedCellError if, by the entries of J and D that can be non-zero, some weight
    influences more than `unit_size` state variables.
    """
    bounds.require("[1, inf)", unit_size=unit_size)
    # Each order adds at least one entry to a pattern that still grows.
    local = snap(order=unit_size)

    def init(structure: Structure) -> SnapState:
        for site in structure.sites:
            reach = reachable(structure, site, order=unit_size + 1)
            if reach.sum(axis=0).max(initial=0) > unit_size:
                raise UnsupportedCellError(
                    f"diagonal_rtrl cannot use this cell: a weight of {site.label} reaches more than "
                    f"unit_size={unit_size} state variables, as its step couples units, and snap() "
                    f"would be biased; use rtrl(), or a larger unit_size if units are larger"
                )
        return local.init(structure)

    return InfluenceEstimator(init, local.push, local.pull)
