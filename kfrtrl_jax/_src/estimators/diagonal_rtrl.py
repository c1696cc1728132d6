"""Exact RTRL of diagonal recurrences (Zucchini et al., 2023, arXiv:2305.15947)."""

from __future__ import annotations

from kfrtrl_jax._src.base import InfluenceEstimator, Structure
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.estimators.snap import SnapState, reachable, snap


def diagonal_rtrl(unit_size: int = 2) -> InfluenceEstimator:
    """G <- J G + I, exactly, where no weight ever reaches more than `unit_size` state variables.

    That is so where J links no two units: a unit is one variable of an element-wise recurrence, the
    real and the imaginary part of a complex one, or the variables of a gated one. Then G has at most
    `unit_size` entries for each weight, and memory and work are those of `snap`: O(unit_size P) and
    O(unit_size^2 P) a lane for P weights (Zucchini et al., 2023, arXiv:2305.15947; Irie et al., 2023,
    arXiv:2305.19044). No bias, no noise.

    Args:
      unit_size: state variables of a unit, at most.

    Raises:
      ValueError: if unit_size is less than 1.

    Its init raises UnsupportedCellError for a cell in which some weight reaches more than that, by
    which entries of J and D can be non-zero.
    """
    if unit_size < 1:
        raise ValueError(f"unit_size must be at least 1, got {unit_size}")
    # As long as a pattern grows with the order it does so by an entry at least.
    local = snap(order=unit_size)

    def init(structure: Structure) -> SnapState:
        for site in structure.sites:
            reach = reachable(structure, site, order=unit_size + 1)
            if reach.sum(axis=0).max(initial=0) > unit_size:
                raise UnsupportedCellError(
                    f"diagonal_rtrl cannot use this cell: a weight of {site.label} reaches more than "
                    f"unit_size={unit_size} state variables, as its step links units, and snap() would "
                    f"be biased; rtrl() is exact, and so is a larger unit_size where units are larger"
                )
        return local.init(structure)

    return InfluenceEstimator(init, local.push, local.pull)
