"""The gradient that is exact along the kept steps.

A segment of K steps has updates every U steps. The gradient of the losses of such an interval is

    (backpropagation inside it) + (backward along the kept steps before it) + c^T G~,

where c is the derivative by the state before the kept steps and G~ its influence, as the estimator has
it. At the segment's end the oldest K of the kept steps are pushed into the estimator, all at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Batch, Key, Linearization
from kfrtrl_jax._src.composition import compose
from kfrtrl_jax._src.learning import kept, trees
from kfrtrl_jax._src.learning.past import Past
from kfrtrl_jax._src.learning.recovery import anywhere
from kfrtrl_jax._src.learning.types import LearnerState, Model, Outcome
from kfrtrl_jax._src.learning.unroll import Forward, Unrolled, backward, forward
from kfrtrl_jax._src.xla import in_place_if

# (state, gradient) -> (the state after an update, what is reported of it).
Update = Callable[[LearnerState, Any], tuple[LearnerState, Any]]


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Numbers of time steps.

    Attributes:
      segment: K, after which the influence is pushed.
      update: U, after which the parameters are updated; it divides K.
      window: how many steps are kept; a multiple of K.
    """

    segment: int
    update: int
    window: int

    @property
    def updates(self) -> int:
        """How many updates a segment has."""
        return self.segment // self.update

    @property
    def earlier(self) -> int:
        """How many steps before the segment are kept."""
        return self.window - self.segment

    @property
    def keeps(self) -> bool:
        """Whether there are kept steps before an update's own."""
        return self.update < self.window


class Passed(NamedTuple):
    """Steps that were taken, before their targets are needed.

    Attributes:
      forward: their forward pass.
      steps: their linearizations, [U, ...].
    """

    forward: Forward
    steps: Linearization


def take(model: Model, state: LearnerState, batches: Batch) -> Passed:
    """Takes the steps of an update, [U, B]; no targets are needed."""
    passed = forward(Unrolled(model, state.parameters, state.carry, batches))
    begins = _begins(state, batches)
    return Passed(passed, linearized(model, state.parameters, passed.seen.starts, batches, begins))


def run_segment(
    model: Model,
    lengths: Lengths,
    state: LearnerState,
    segment: Batch,
    key: Key,
    update: Update,
    taken: Passed | None = None,
) -> tuple[Any, LearnerState, Outcome]:
    """(the reports of its updates, [K / U, ...], the state after it, its outcome).

    Args:
      model: the parts of the learner.
      lengths: K, U and the window.
      state: before the segment.
      segment: the batches of its steps, [K, B].
      key: for the estimator.
      update: what to do with the gradient of each update.
      taken: the steps, if they have been taken already; K is U then.
    """
    influence = state.influence
    ring: Any = state.kept if lengths.earlier else None
    if lengths.keeps and not lengths.earlier:
        first = jax.tree.map(lambda x: x[0], segment.inputs)
        ring = kept.empty(model, state.parameters["cell"], state.carry, first, lengths.window)

    def one(carry: tuple[LearnerState, Any], interval: tuple[Batch, Array]) -> Any:
        """(((state, kept steps), (report, outcome, are lanes lost, cotangent)), influence)."""
        state, ring = carry
        batches, count = interval
        passed = take(model, state, batches) if taken is None else taken
        unrolled = Unrolled(model, state.parameters, state.carry, batches)
        inside = backward(unrolled, passed.forward)
        # Nothing precedes a run's first step: the cotangent is 0, even if the derivative is infinite.
        cotangent = jnp.where(state.fresh[:, None], 0, inside.cotangent)
        past = Past(model, influence, ring, cotangent, _begins(state, batches), count)
        pulled, lost = past.pulled()
        sites = trees.add(inside.sites, pulled.gradients)
        gradient = unrolled.by_parameters(sites, inside.others)
        state = state._replace(carry=inside.seen.carry, fresh=jnp.zeros_like(state.fresh))
        state, report = update(state, gradient)
        kept_now = passed.steps if ring is None else kept.append(ring, passed.steps)
        outcome = Outcome(inside.losses, inside.predictions)
        outputs = report, outcome, lost, pulled.cotangent
        return ((state, kept_now), outputs), pulled.influence

    # The influence is the same for all updates: the loop need not carry it.
    state = state._replace(influence=())
    intervals = jax.tree.map(
        lambda x: x.reshape(lengths.updates, lengths.update, *x.shape[1:]), segment
    )
    if lengths.updates == 1:
        only = jax.tree.map(lambda x: x[0], intervals)
        ((state, ring), outputs), influence = one(
            (state, ring), (only, jnp.asarray(lengths.earlier))
        )
        reports, outcomes, _, cotangents = jax.tree.map(lambda x: x[None], outputs)
    else:
        counts = lengths.earlier + lengths.update * jnp.arange(lengths.updates)
        (state, ring), (reports, outcomes, lost, cotangents) = jax.lax.scan(
            lambda carry, interval: one(carry, interval)[0], (state, ring), (intervals, counts)
        )
        forget = model.forget
        if forget is not None:
            starts = jnp.any(ring.steps.keep == 0, axis=0)
            influence = in_place_if(
                anywhere(jnp.any(lost)), lambda influence: forget(influence, starts), influence
            )
    steps = ring
    if lengths.keeps:
        # Without earlier steps the ring is the segment's, from its first place on.
        steps = kept.oldest(ring, lengths.segment) if lengths.earlier else ring.steps
    influence = model.estimator.observe(influence, cotangents)
    influence = model.estimator.push(influence, compose(steps), key)
    state = state._replace(influence=influence, kept=ring if lengths.earlier else ())
    flat = jax.tree.map(lambda x: x.reshape(lengths.segment, *x.shape[2:]), outcomes)
    return reports, state, flat


def _begins(state: LearnerState, batches: Batch) -> Array:
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
