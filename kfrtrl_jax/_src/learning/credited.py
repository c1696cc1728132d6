"""The gradient of a segment with a credit, which continues it into the future.

The effect of parameters in one segment on a loss in a later one is counted twice: through the influence
in the later segment and through the credit in the earlier one. The two shares add up to 1, so if both
are exact, the sum over segments is the exact gradient of the sum of their mean losses. Losses have
their weights over the mean weight of their own segment, in the gradient and in the credit alike. With
share 1 the influence estimator has no part in it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src.base import Array, Batch, CreditEstimator, Key
from kfrtrl_jax._src.composition import compose
from kfrtrl_jax._src.learning import trees, weighted
from kfrtrl_jax._src.learning.exact import lanes_begun, linearized
from kfrtrl_jax._src.learning.past import Past
from kfrtrl_jax._src.learning.types import LearnerState, Model, Outcome, Update
from kfrtrl_jax._src.learning.unroll import SegmentGradient, Unrolled


@dataclasses.dataclass(frozen=True)
class Credited:
    """The form with a credit, see `types.Form`; its segments have one update.

    Attributes:
      model: the parts of the learner.
      credit: the credit estimator.
      share: the credit's share, if its value is known; if it is 1, the influence is not pulled.
    """

    model: Model
    credit: CreditEstimator
    share: float | None

    def run(
        self,
        state: LearnerState,
        segment: Batch,
        key: Key,
        update: Update,
        taken: Any = None,
    ) -> tuple[Any, LearnerState, Outcome]:
        """See `types.Form`."""
        del taken
        model = self.model
        unrolled = Unrolled(model, state.parameters, state.carry, segment)
        inside, credit_state = self._inside(unrolled, state)
        sites, influence = inside.sites, state.influence
        begins = lanes_begun(state, segment)
        if self.share != 1:
            cotangent = jnp.where(state.fresh[:, None], 0, inside.cotangent)
            past = Past(model, influence, None, cotangent, begins, jnp.asarray(0))
            pulled, _ = past.pulled()
            influence = model.estimator.observe(pulled.influence, pulled.cotangent[None])
            sites = trees.add(sites, pulled.gradients)
        steps = linearized(model, state.parameters, inside.seen.starts, segment, begins)
        gradient = unrolled.by_parameters(sites, inside.others)
        new = state._replace(
            carry=inside.seen.carry,
            influence=model.estimator.push(influence, compose(steps), key),
            fresh=jnp.zeros_like(state.fresh),
            credit=credit_state,
        )
        new, report = update(new, gradient)
        reports = jax.tree.map(lambda x: x[None], report)
        return reports, new, Outcome(inside.losses, inside.predictions)

    def _inside(self, unrolled: Unrolled, state: LearnerState) -> tuple[SegmentGradient, Any]:
        """The gradient inside the segment with the credit's part, and the updated credit state."""
        segment, flatten, credit = unrolled.segment, self.model.linearizer.flatten, self.credit

        def ends(
            variables: Any, floats: Any
        ) -> tuple[tuple[Float[Array, "K B"], Float[Array, "B n"]], Any]:
            predictions, seen = unrolled.predict(variables, floats)
            losses = weighted.losses_of(self.model, predictions, segment)
            return (losses, flatten(seen.carry)), (predictions, seen)

        (losses, end), pullback, (predictions, seen) = jax.vjp(
            ends, unrolled.variables, unrolled.floats, has_aux=True
        )
        future = credit.predict(state.credit, end).astype(end.dtype)
        weights, nothing = weighted.relative_weights(segment, losses), jnp.zeros_like(end)
        if self.share == 1:
            gradient, start = pullback((weights, future))
            past = jax.tree.map(jnp.zeros_like, start)
        else:
            gradient, past = pullback((weights, nothing))
            late, start = pullback((jnp.zeros_like(losses), future))
            gradient = trees.add(gradient, trees.scaled(late, credit.share))
            start = trees.add(past, start)
            past = trees.scaled(past, (1 - credit.share) / losses.size)
        target = unrolled.by_state(start)
        # At the first step of a run it may be infinite; the credit there is never used.
        target = jnp.where(state.fresh[:, None] & ~jnp.isfinite(target), 0, target)
        new = credit.update(state.credit, flatten(state.carry), target)
        sites, others = unrolled.by_sites(trees.scaled(gradient, 1 / losses.size), seen.data)
        inside = SegmentGradient(sites, others, unrolled.by_state(past), losses, predictions, seen)
        return inside, new
