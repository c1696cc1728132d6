"""The gradient that is exact along the kept steps.

A segment of K steps has updates every U steps. The gradient of the losses of such an interval is

    (backpropagation inside it) + (backward along the kept steps before it) + c^T G~,

where c is the derivative by the state before the kept steps and G~ its influence, as the estimator has
it. At the segment's end the oldest K of the kept steps are pushed into the estimator, all at once.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Batch, Key, Linearization
from kfrtrl_jax._src.composition import compose
from kfrtrl_jax._src.learning import kept, trees
from kfrtrl_jax._src.learning.lengths import Lengths
from kfrtrl_jax._src.learning.past import Past
from kfrtrl_jax._src.learning.recovery import anywhere
from kfrtrl_jax._src.learning.types import LearnerState, Model, Outcome, Update
from kfrtrl_jax._src.learning.unroll import Forward, Unrolled, backward, forward
from kfrtrl_jax._src.xla import in_place_if


class Passed(NamedTuple):
    """Steps that were taken, before their targets are needed.

    Attributes:
      forward: their forward pass.
      steps: their linearizations, [U, ...].
    """

    forward: Forward
    steps: Linearization


@dataclasses.dataclass(frozen=True)
class Exact:
    """The form of `immediate="exact"` without a credit, see `types.Form`.

    Attributes:
      model: the parts of the learner.
      lengths: K, U and the window.
    """

    model: Model
    lengths: Lengths

    def take(self, state: LearnerState, batch: Batch) -> tuple[Any, Passed]:
        """See `types.SteppedForm`."""
        taken = self._take(state, jax.tree.map(lambda x: x[None], batch))
        return jax.tree.map(lambda x: x[0], taken.forward.predictions), taken

    def run(
        self,
        state: LearnerState,
        segment: Batch,
        key: Key,
        update: Update,
        taken: Passed | None = None,
    ) -> tuple[Any, LearnerState, Outcome]:
        """See `types.Form`."""
        lengths = self.lengths
        intervals = jax.tree.map(
            lambda x: x.reshape(lengths.updates, lengths.update, *x.shape[1:]), segment
        )
        # The influence is the same for all updates: the loop need not carry it.
        start, influence = state._replace(influence=()), state.influence
        ring = self._ring(state, segment)
        updates = _Updates(self, influence, update)
        if lengths.updates == 1:
            only = jax.tree.map(lambda x: x[0], intervals)
            counted = only, jnp.asarray(lengths.earlier)
            (end, outputs), influence = updates.one((start, ring), counted, taken)
            outputs = jax.tree.map(lambda x: x[None], outputs)
        else:
            counts = lengths.earlier + lengths.update * jnp.arange(lengths.updates)
            end, outputs = jax.lax.scan(
                lambda carry, interval: updates.one(carry, interval)[0],
                (start, ring),
                (intervals, counts),
            )
            influence = self._without_lost(influence, end[1], outputs.lost)
        state, ring = end
        influence = self.model.estimator.observe(influence, outputs.cotangent)
        influence = self.model.estimator.push(influence, compose(self._pushed(ring)), key)
        state = state._replace(influence=influence, kept=ring if lengths.earlier else ())
        outcome = jax.tree.map(lambda x: x.reshape(lengths.segment, *x.shape[2:]), outputs.outcome)
        return outputs.report, state, outcome

    def _take(self, state: LearnerState, batches: Batch) -> Passed:
        """Takes the steps of an update, [U, B]."""
        passed = forward(Unrolled(self.model, state.parameters, state.carry, batches))
        begins, starts = lanes_begun(state, batches), passed.seen.starts
        return Passed(passed, linearized(self.model, state.parameters, starts, batches, begins))

    def _ring(self, state: LearnerState, segment: Batch) -> Any:
        """The kept steps before the segment; None if no update has any before its own."""
        lengths = self.lengths
        if lengths.keeps and not lengths.earlier:
            first = jax.tree.map(lambda x: x[0], segment.inputs)
            cell = state.parameters["cell"]
            return kept.empty(self.model, cell, state.carry, first, lengths.window)
        return state.kept if lengths.earlier else None

    def _without_lost(self, influence: Any, ring: kept.Kept, lost: Array) -> Any:
        """The influence; if an update left lanes out, without those that start in the segment."""
        forget = self.model.forget
        if forget is None:
            return influence
        starts = jnp.any(ring.steps.keep == 0, axis=0)
        return in_place_if(
            anywhere(jnp.any(lost)), lambda influence: forget(influence, starts), influence
        )

    def _pushed(self, ring: Any) -> Linearization:
        """The steps to push at the segment's end, [K, ...]."""
        if self.lengths.earlier:
            return kept.oldest(ring, self.lengths.segment)
        # Without earlier steps the ring is the segment's, from its first place on.
        return ring.steps if self.lengths.keeps else ring


class _Outputs(NamedTuple):
    """What an update leaves beside the learner's state.

    Attributes:
      report: what `Update` says of it.
      outcome: of its steps.
      lost: whether lanes were left out of its gradient.
      cotangent: that the influence was pulled with, [B, n].
    """

    report: Any
    outcome: Outcome
    lost: Array
    cotangent: Array


class _Updates(NamedTuple):
    """The updates of a segment, which share the influence before it.

    Attributes:
      form: of the gradient.
      influence: the estimator's state at the segment's start.
      update: what to do with each gradient.
    """

    form: Exact
    influence: Any
    update: Update

    def one(
        self, carry: tuple[LearnerState, Any], interval: tuple[Batch, Array], taken: Any = None
    ) -> tuple[tuple[Any, _Outputs], Any]:
        """(((state, kept steps), outputs), the influence to go on with).

        Args:
          carry: (state, kept steps).
          interval: (its batches [U, B], how many steps are kept before it).
          taken: its steps, if they have been taken already.
        """
        (state, ring), (batches, count) = carry, interval
        model = self.form.model
        passed = self.form._take(state, batches) if taken is None else taken
        unrolled = Unrolled(model, state.parameters, state.carry, batches)
        inside = backward(unrolled, passed.forward)
        # Nothing precedes a run's first step: the cotangent is 0, even if the derivative is infinite.
        cotangent = jnp.where(state.fresh[:, None], 0, inside.cotangent)
        past = Past(model, self.influence, ring, cotangent, lanes_begun(state, batches), count)
        pulled, lost = past.pulled()
        sites = trees.add(inside.sites, pulled.gradients)
        gradient = unrolled.by_parameters(sites, inside.others)
        state = state._replace(carry=inside.seen.carry, fresh=jnp.zeros_like(state.fresh))
        state, report = self.update(state, gradient)
        kept_now = passed.steps if ring is None else kept.append(ring, passed.steps)
        outcome = Outcome(inside.losses, inside.predictions)
        outputs = _Outputs(report, outcome, lost, pulled.cotangent)
        return ((state, kept_now), outputs), pulled.influence


def lanes_begun(state: LearnerState, batches: Batch) -> Array:
    """The lanes that start anew before each step, [U, B]."""
    return batches.reset.at[0].set(batches.reset[0] | state.fresh)


def linearized(
    model: Model, parameters: Any, starts: Any, batches: Batch, begins: Array
) -> Linearization:
    """The linearizations of steps, [U, ...], at the carries that they start from."""
    keep = 1 - begins.astype(model.linearizer.structure.dtype)

    def one(start: Any, inputs: Any, keep: Array) -> Linearization:
        return model.linearizer.linearize(parameters["cell"], start, inputs, keep)

    if len(keep) == 1:
        steps = one(*jax.tree.map(lambda x: x[0], (starts, batches.inputs, keep)))
        return jax.tree.map(lambda x: x[None], steps)
    return jax.vmap(one)(starts, batches.inputs, keep)
