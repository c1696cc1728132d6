"""The matrices that Jacobians are made of: one module per kind, and their compositions.

Sizes are static, so is the place of every entry that can be non-zero; leading axes (terms, lanes) are
free, so the same code serves one lane inside `vmap` and a whole batch.
"""

from kfrtrl_jax._src.matrices.banded import Banded, places_of_bands
from kfrtrl_jax._src.matrices.block_columns import BlockColumns, FactoredTerm
from kfrtrl_jax._src.matrices.block_rows import BlockRows
from kfrtrl_jax._src.matrices.composed import Composed
from kfrtrl_jax._src.matrices.dense import Dense
from kfrtrl_jax._src.matrices.index import Index, runs, spans, take
from kfrtrl_jax._src.matrices.operations import (
    Matrix,
    below_each_other,
    compose,
    placed,
    plain,
    side_by_side,
    through_weights,
    total,
)
from kfrtrl_jax._src.matrices.shared import Shared
from kfrtrl_jax._src.matrices.terms import Group, Terms, single, stacked

__all__ = [
    "Banded",
    "BlockColumns",
    "BlockRows",
    "Composed",
    "Dense",
    "FactoredTerm",
    "Group",
    "Index",
    "Matrix",
    "Shared",
    "Terms",
    "below_each_other",
    "compose",
    "placed",
    "places_of_bands",
    "plain",
    "runs",
    "side_by_side",
    "single",
    "spans",
    "stacked",
    "take",
    "through_weights",
    "total",
]
