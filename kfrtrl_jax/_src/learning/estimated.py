"""The papers' form: the loss at time t is contracted with the estimate G~_t, which includes step t.

The immediate Jacobian is then part of the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Batch, Key, Linearization
from kfrtrl_jax._src.lanes import restarted
from kfrtrl_jax._src.learning import trees, weighted
from kfrtrl_jax._src.learning.groups import GroupedGradients, together
from kfrtrl_jax._src.learning.recovery import recovered
from kfrtrl_jax._src.learning.types import LearnerState, Model, Outcome


class Passed(NamedTuple):
    """A step that was taken, before its targets are needed.

    Attributes:
      carry: after it, [B, ...].
      predictions: [B, ...].
      pullback: from the loss's derivatives by the predictions to those by the readout's floats and by
        the floats of the carry; a pytree.
      step: its linearization.
    """

    carry: Any
    predictions: Any
    pullback: Callable[..., Any]
    step: Linearization


def take(model: Model, state: LearnerState, batch: Batch) -> Passed:
    """Takes a step; no targets are needed."""
    parameters, linearizer = state.parameters, model.linearizer
    output_of = linearizer.output_of
    assert output_of is not None
    start = restarted(model.cell, state.carry, batch.reset)
    carry, _ = jax.vmap(model.cell.step, in_axes=(None, 0, 0))(
        parameters["cell"], start, batch.inputs
    )
    floats, rest = trees.partition(carry)
    readout_floats, readout_rest = trees.partition(parameters["readout"])

    def predict(readout_floats: Any, floats: Any) -> Any:
        outputs = jax.vmap(output_of)(trees.combine(floats, rest))
        readout = trees.combine(readout_floats, readout_rest)
        return jax.vmap(lambda h: model.readout.apply(readout, h))(outputs)

    predictions, pullback = jax.vjp(predict, readout_floats, floats)
    keep = 1 - (batch.reset | state.fresh).astype(linearizer.structure.dtype)
    step = linearizer.linearize(parameters["cell"], start, batch.inputs, keep)
    return Passed(carry, predictions, pullback, step)


def run_step(
    model: Model, state: LearnerState, segment: Batch, key: Key, taken: Passed | None = None
) -> tuple[Any, LearnerState, Outcome]:
    """(the gradient, the state after the step, its outcome), for a segment of one step.

    Args:
      model: the parts of the learner.
      state: before the step.
      segment: its batch, [1, B].
      key: for the estimator.
      taken: the step, if it has been taken already.
    """
    batch = jax.tree.map(lambda x: x[0], segment)
    linearizer = model.linearizer
    carry, predictions, pullback, step = taken or take(model, state, batch)
    by_predictions, losses = weighted.by_predictions(model, predictions, batch)
    by_readout, by_floats = pullback(by_predictions)
    rest = trees.partition(carry)[1]
    cotangent = linearizer.flatten_cotangent(trees.combine(by_floats, rest))

    def advance(influence: Any) -> tuple[Any, GroupedGradients]:
        influence = model.estimator.push(influence, step, key)
        return influence, model.pull(influence, cotangent)

    def without_lost_lanes() -> tuple[Any, GroupedGradients]:
        forget = model.forget
        if forget is None:
            return advance(state.influence)
        unused = jnp.all(cotangent == 0, axis=1)
        influence, _ = advance(forget(state.influence, batch.reset | state.fresh))
        return influence, model.pull(forget(influence, unused), cotangent)

    (influence, pulled), _ = recovered(advance(state.influence), without_lost_lanes)
    influence = model.estimator.observe(influence, cotangent[None])
    by_cell = linearizer.gradient(state.parameters["cell"], together(pulled))
    gradient = {"cell": by_cell, "readout": by_readout}
    new = state._replace(carry=carry, influence=influence, fresh=jnp.zeros_like(state.fresh))
    return gradient, new, jax.tree.map(lambda x: x[None], Outcome(losses, predictions))
