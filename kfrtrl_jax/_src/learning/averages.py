"""The parameters that a learner is judged by: their average, if its optimizer keeps one."""

from __future__ import annotations

import jax

from kfrtrl_jax._src.learning import trees
from kfrtrl_jax._src.learning.types import LearnerState, Parameters
from kfrtrl_jax._src.optimizers import average_in


def evaluated_parameters(state: LearnerState) -> Parameters:
    """The average of the parameters that `optimizers.average_parameters` keeps, or else the parameters.

    Args:
      state: of a learner; its arrays may have leading axes, of runs side by side.

    Returns:
      {"cell": ..., "readout": ...}, as `predict` takes them.
    """
    average = average_in(state.optimizer_state)
    if average is None:
        return state.parameters
    floats, constants = trees.partition(state.parameters)
    # See `optimizers.in_float32`.
    own = jax.tree.map(lambda x, like: x.astype(like.dtype), average, floats)
    return trees.combine(own, constants)
