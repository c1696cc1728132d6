"""The papers' form: the loss at time t is contracted with the estimate G~_t, which includes step t.

The immediate Jacobian is then part of the noise.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src.base import Array, Batch, Key
from kfrtrl_jax._src.lanes import restarted
from kfrtrl_jax._src.learning import trees, weighted
from kfrtrl_jax._src.learning.groups import GroupedGradients, together
from kfrtrl_jax._src.learning.recovery import recovered
from kfrtrl_jax._src.learning.types import LearnerState, Model, Outcome


def run_step(
    model: Model, state: LearnerState, segment: Batch, key: Key
) -> tuple[Any, LearnerState, Outcome]:
    """(the gradient, the state after the step, its outcome), for a segment of one step."""
    batch = jax.tree.map(lambda x: x[0], segment)
    parameters, linearizer = state.parameters, model.linearizer
    begins = batch.reset | state.fresh
    start = restarted(model.cell, state.carry, batch.reset)
    carry, _ = jax.vmap(model.cell.step, in_axes=(None, 0, 0))(
        parameters["cell"], start, batch.inputs
    )
    by_readout, cotangent, outcome = _by_state(model, parameters["readout"], carry, batch)
    keep = 1 - begins.astype(linearizer.structure.dtype)
    step = linearizer.linearize(parameters["cell"], start, batch.inputs, keep)

    def advance(influence: Any) -> tuple[Any, GroupedGradients]:
        influence = model.estimator.push(influence, step, key)
        return influence, model.pull(influence, cotangent)

    def without_lost_lanes() -> tuple[Any, GroupedGradients]:
        forget = model.forget
        if forget is None:
            return advance(state.influence)
        unused = jnp.all(cotangent == 0, axis=1)
        influence, _ = advance(forget(state.influence, begins))
        return influence, model.pull(forget(influence, unused), cotangent)

    (influence, pulled), _ = recovered(advance(state.influence), without_lost_lanes)
    influence = model.estimator.observe(influence, cotangent[None])
    by_cell = linearizer.gradient(parameters["cell"], together(pulled))
    gradient = {"cell": by_cell, "readout": by_readout}
    new = state._replace(carry=carry, influence=influence, fresh=jnp.zeros_like(state.fresh))
    return gradient, new, jax.tree.map(lambda x: x[None], outcome)


def _by_state(
    model: Model, readout: Any, carry: Any, batch: Batch
) -> tuple[Any, Float[Array, "B n"], Outcome]:
    """The mean loss's derivatives by the readout and by the new state, [B, n], and the outcome [B]."""
    output_of = model.linearizer.output_of
    assert output_of is not None
    floats, rest = trees.partition(carry)
    readout_floats, readout_rest = trees.partition(readout)

    def mean(readout_floats: Any, floats: Any) -> tuple[Float[Array, ""], Outcome]:
        outputs = jax.vmap(output_of)(trees.combine(floats, rest))
        readout = trees.combine(readout_floats, readout_rest)
        predictions = jax.vmap(lambda h: model.readout.apply(readout, h))(outputs)
        losses = weighted.losses_of(model, predictions, batch)
        return weighted.mean_of(batch, losses), Outcome(losses, predictions)

    (by_readout, by_floats), outcome = jax.grad(mean, argnums=(0, 1), has_aux=True)(
        readout_floats, floats
    )
    cotangent = model.linearizer.flatten_cotangent(trees.combine(by_floats, rest))
    return by_readout, cotangent, outcome
