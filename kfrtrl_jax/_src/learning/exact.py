"""The form in which what the parameters do inside the kept steps is exact.

A segment of K steps has updates every U steps. The gradient of the losses of such an interval is

    (backpropagation inside it) + (backward along the kept steps before it) + c^T G~,

where c is the derivative by the state before the kept steps and G~ its influence, as the estimator has
it. At the segment's end the oldest K of the kept steps are pushed into the estimator, all at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Batch, Key, Linearization
from kfrtrl_jax._src.composition import compose
from kfrtrl_jax._src.learning import kept, trees
from kfrtrl_jax._src.learning.recovery import make_forget, pull
from kfrtrl_jax._src.learning.types import LearnerState, Model
from kfrtrl_jax._src.learning.unroll import Unrolled, backpropagate

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


def run_segment(
    model: Model, lengths: Lengths, state: LearnerState, segment: Batch, key: Key, update: Update
) -> tuple[Any, LearnerState, Array]:
    """(what is reported of its updates, [K / U, ...], the state after it, its losses [K, B])."""
    forget = make_forget(model.estimator, model.linearizer.structure)
    ring = state.kept
    if lengths.keeps and not lengths.earlier:
        first = jax.tree.map(lambda x: x[0], segment.inputs)
        ring = kept.empty(model, state.parameters["cell"], state.carry, first, lengths.window)

    def one(carry: tuple[LearnerState, Any], interval: tuple[Batch, Array]) -> Any:
        state, ring = carry
        batches, count = interval
        begins = batches.reset.at[0].set(batches.reset[0] | state.fresh)
        inside = backpropagate(Unrolled(model, state.parameters, state.carry, batches))
        # What came before the very first step does not exist, however infinite the derivative there.
        cotangent = jnp.where(state.fresh[:, None], 0, inside.cotangent)
        started, before = begins[0], None
        if lengths.keeps:
            before = kept.backpropagate(ring, cotangent, count)
            cotangent, started = before.cotangent, started | before.started
        starts = started | jnp.any(begins, axis=0)
        influence, past = pull(model.estimator, forget, state.influence, cotangent, started, starts)
        if before is not None:
            past = jax.tree.map(jnp.add, past, before.gradients)
        by_past = model.linearizer.gradient(state.parameters["cell"], past)
        gradient = {**inside.gradient, "cell": trees.add(inside.gradient["cell"], by_past)}
        steps = linearized(model, state.parameters, inside.seen.starts, batches, begins)
        ring = kept.append(ring, steps) if lengths.keeps else steps
        state = state._replace(
            carry=inside.seen.carry,
            influence=influence,
            fresh=jnp.zeros_like(state.fresh),
        )
        state, report = update(state, gradient)
        return (state, ring), (report, inside.losses)

    intervals = jax.tree.map(
        lambda x: x.reshape(lengths.updates, lengths.update, *x.shape[1:]), segment
    )
    if lengths.updates == 1:
        first = jax.tree.map(lambda x: x[0], intervals)
        (state, ring), outputs = one((state, ring), (first, jnp.asarray(lengths.earlier)))
        reports, losses = jax.tree.map(lambda x: x[None], outputs)
    else:
        counts = lengths.earlier + lengths.update * jnp.arange(lengths.updates)
        (state, ring), (reports, losses) = jax.lax.scan(one, (state, ring), (intervals, counts))
    steps = kept.oldest(ring, lengths.segment) if lengths.keeps else ring
    influence = model.estimator.push(state.influence, compose(steps), key)
    state = state._replace(influence=influence, kept=ring if lengths.earlier else ())
    return reports, state, losses.reshape(lengths.segment, -1)


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
