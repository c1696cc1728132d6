"""The papers' form: the loss at time t is contracted with the estimate G~_t, which includes step t.

The immediate Jacobian is then part of the noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Batch, Key, Linearization
from kfrtrl_jax._src.lanes import restarted
from kfrtrl_jax._src.learning import trees, weighted
from kfrtrl_jax._src.learning.groups import GroupedGradients, together
from kfrtrl_jax._src.learning.recovery import recovered
from kfrtrl_jax._src.learning.types import LearnerState, Model, Outcome, Update


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


@dataclasses.dataclass(frozen=True)
class Estimated:
    """The form of `immediate="estimated"`, see `types.Form`; its segments have one step.

    Attributes:
      model: the parts of the learner.
    """

    model: Model

    def take(self, state: LearnerState, batch: Batch) -> tuple[Any, Passed]:
        """See `types.SteppedForm`."""
        parameters, linearizer = state.parameters, self.model.linearizer
        output_of = linearizer.output_of
        assert output_of is not None
        start = restarted(self.model.cell, state.carry, batch.reset)
        carry, _ = jax.vmap(self.model.cell.step, in_axes=(None, 0, 0))(
            parameters["cell"], start, batch.inputs
        )
        floats, rest = trees.partition(carry)
        readout_floats, readout_rest = trees.partition(parameters["readout"])

        def predict(readout_floats: Any, floats: Any) -> Any:
            outputs = jax.vmap(output_of)(trees.combine(floats, rest))
            readout = trees.combine(readout_floats, readout_rest)
            return jax.vmap(lambda h: self.model.readout.apply(readout, h))(outputs)

        predictions, pullback = jax.vjp(predict, readout_floats, floats)
        keep = 1 - (batch.reset | state.fresh).astype(linearizer.structure.dtype)
        step = linearizer.linearize(parameters["cell"], start, batch.inputs, keep)
        return predictions, Passed(carry, predictions, pullback, step)

    def run(
        self,
        state: LearnerState,
        segment: Batch,
        key: Key,
        update: Update,
        taken: Passed | None = None,
    ) -> tuple[Any, LearnerState, Outcome]:
        """See `types.Form`."""
        batch = jax.tree.map(lambda x: x[0], segment)
        passed = self.take(state, batch)[1] if taken is None else taken
        by_predictions, losses = weighted.by_predictions(self.model, passed.predictions, batch)
        by_readout, by_floats = passed.pullback(by_predictions)
        rest = trees.partition(passed.carry)[1]
        linearizer = self.model.linearizer
        cotangent = linearizer.flatten_cotangent(trees.combine(by_floats, rest))
        influence, pulled = self._advanced(state, batch, passed.step, cotangent, key)
        influence = self.model.estimator.observe(influence, cotangent[None])
        by_cell = linearizer.gradient(state.parameters["cell"], together(pulled))
        new = state._replace(
            carry=passed.carry, influence=influence, fresh=jnp.zeros_like(state.fresh)
        )
        new, report = update(new, {"cell": by_cell, "readout": by_readout})
        reports, outcome = jax.tree.map(
            lambda x: x[None], (report, Outcome(losses, passed.predictions))
        )
        return reports, new, outcome

    def _advanced(
        self, state: LearnerState, batch: Batch, step: Linearization, cotangent: Array, key: Key
    ) -> tuple[Any, GroupedGradients]:
        """(the influence after the step, the gradient that it gives)."""
        model, forget = self.model, self.model.forget

        def advance(influence: Any) -> tuple[Any, GroupedGradients]:
            influence = model.estimator.push(influence, step, key)
            return influence, model.pull(influence, cotangent)

        def without_lost_lanes() -> tuple[Any, GroupedGradients]:
            if forget is None:
                return advance(state.influence)
            unused = jnp.all(cotangent == 0, axis=1)
            influence, _ = advance(forget(state.influence, batch.reset | state.fresh))
            return influence, model.pull(forget(influence, unused), cotangent)

        found, _ = recovered(advance(state.influence), without_lost_lanes)
        return found
