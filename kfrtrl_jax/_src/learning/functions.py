"""The functions of a learner."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float

from kfrtrl_jax._src import xla
from kfrtrl_jax._src.base import Array, Batch, Cell, CreditEstimator, Key, Loss
from kfrtrl_jax._src.lanes import along, initial_lanes, restarted
from kfrtrl_jax._src.learning import kept, trees, weighted
from kfrtrl_jax._src.learning.door import Door, stacked
from kfrtrl_jax._src.learning.lengths import Lengths
from kfrtrl_jax._src.learning.pending import Pending, put_aside, taken_up
from kfrtrl_jax._src.learning.recovery import Lost, lanes_lost
from kfrtrl_jax._src.learning.types import (
    Form,
    Learner,
    LearnerState,
    Model,
    StepMetrics,
    SteppedForm,
    Update,
)
from kfrtrl_jax._src.shapes import require_key, require_leading_axes, require_shape


@dataclasses.dataclass(frozen=True, eq=False)
class Functions:
    """The functions of a `Learner`, which describes them, as methods of what they share.

    Attributes:
      model: the parts that gradients need.
      form: of the gradient.
      lengths: K, U and the window.
      credit: the credit estimator, if there is one.
      optimizer: of the parameters' floats.
      loss: with its unit.
      influence_lost: from `recovery.make_lost`, for the estimator.
      door: refuses segments of the wrong shapes.
    """

    model: Model
    form: Form
    lengths: Lengths
    credit: CreditEstimator | None
    optimizer: optax.GradientTransformation
    loss: Loss
    influence_lost: Lost
    door: Door

    def learner(self) -> Learner:
        """All of them, with what callers ask of a learner."""
        return Learner(
            init=self.init,
            step=self.step,
            predict=self.predict,
            update=self.update,
            gradient=self.gradient,
            apply_gradient=self.apply_gradient,
            restart=self.restart,
            lost=self.lost,
            diagnostics=self.diagnostics,
            linearizer=self.model.linearizer,
            segment_length=self.lengths.segment,
            example_input=stacked(self.door.example_input),
            unit=self.loss.unit,
        )

    def init(self, key: Key) -> LearnerState:
        require_key("key", key)
        model, credit = self.model, self.credit
        structure = model.linearizer.structure
        cell_key, readout_key, key, *rest = jax.random.split(key, 3 if credit is None else 4)
        parameters = {"cell": model.cell.init(cell_key), "readout": model.readout.init(readout_key)}
        carry = initial_lanes(model.cell, model.batch_size)
        ring: Any = ()
        if self.lengths.earlier:
            inputs = stacked(self.door.example_input, model.batch_size)
            ring = kept.empty(model, parameters["cell"], carry, inputs, self.lengths.window)
        return LearnerState(
            parameters,
            self.optimizer.init(trees.partition(parameters)[0]),
            carry,
            model.estimator.init(structure),
            key,
            jnp.ones(model.batch_size, bool),
            ring,
            () if credit is None else credit.init(structure, *rest),
        )

    def step(self, state: LearnerState, segment: Batch) -> tuple[LearnerState, StepMetrics]:
        segment, single = self.door.opened(segment)
        return self._learned(state, segment, single)

    def gradient(self, state: LearnerState, segment: Batch) -> tuple[Any, LearnerState, Array]:
        segment, single = self.door.opened(segment)
        gradients, state, outcome = self._run(
            state, segment, lambda state, gradient: (state, gradient)
        )
        if self.lengths.updates == 1:
            gradients = jax.tree.map(lambda g: g[0], gradients)
        means = weighted.means_of_steps(segment, outcome.losses)[0] * self.loss.scale
        return gradients, state, means[0] if single else means

    def apply_gradient(
        self, state: LearnerState, gradient: Any
    ) -> tuple[LearnerState, Float[Array, ""]]:
        floats, constants = trees.partition(state.parameters)
        # JAX's gradient by a complex number points the wrong way along its imaginary part.
        descending = jax.tree.map(jnp.conj, gradient)
        updates, optimizer_state = self.optimizer.update(descending, state.optimizer_state, floats)
        parameters = trees.combine(optax.apply_updates(floats, updates), constants)
        new = state._replace(parameters=parameters, optimizer_state=optimizer_state)
        return new, xla.norm_of_tree(gradient)

    def predict(
        self, state: LearnerState, inputs: Any, reset: Bool[Array, " B"] | None = None
    ) -> tuple[Any, Pending]:
        form = self._stepped()
        self._check_state(state)
        lanes = self.model.batch_size
        self.door.check_inputs(inputs, (lanes,))
        reset = jnp.zeros(lanes, bool) if reset is None else reset
        require_shape("reset", reset, lanes)
        batch = Batch(jax.tree.map(jnp.asarray, inputs), None, jnp.asarray(reset, bool))
        predictions, taken = form.take(state, batch)
        return predictions, put_aside((batch, taken), state)

    def update(
        self, state: LearnerState, pending: Pending, targets: Any, weight: Array | None = None
    ) -> tuple[LearnerState, StepMetrics]:
        self._stepped()
        if not isinstance(pending, Pending):
            raise ValueError(
                f"update takes what predict has left pending, and the targets, got a "
                f"{type(pending).__name__}; for an optimizer's step with a gradient of your own use "
                f"apply_gradient"
            )
        batch, taken = taken_up(pending, state)
        segment, _ = self.door.opened(batch._replace(targets=targets, weight=weight))
        return self._learned(state, segment, True, taken)

    def restart(self, state: LearnerState, lanes: Array) -> LearnerState:
        require_shape("lanes", lanes, self.model.batch_size)
        influence, ring = state.influence, state.kept
        if self.model.forget is not None:
            influence = self.model.forget(influence, lanes)
        if self.lengths.earlier:
            ring = kept.forgotten(ring, lanes)
        return state._replace(
            carry=_started(self.model.cell, state.carry, lanes),
            influence=influence,
            fresh=state.fresh | lanes,
            kept=ring,
        )

    def lost(self, state: LearnerState) -> Array:
        leaves = [(0, x) for x in jax.tree.leaves(state.carry)]
        found = lanes_lost(leaves, self.model.batch_size) | self.influence_lost(state.influence)
        return found | kept.lost(state.kept) if self.lengths.earlier else found

    def diagnostics(self, state: LearnerState) -> dict[str, Float[Array, ""]]:
        named = {} if self.credit is None else self.credit.diagnostics(state.credit)
        return {
            **self.model.estimator.diagnostics(state.influence),
            **{f"credit/{name}": value for name, value in named.items()},
        }

    def _run(self, state: LearnerState, segment: Batch, update: Update, taken: Any = None) -> Any:
        """(the reports of its updates, [K / U, ...], the state after it, the outcome)."""
        self._check_state(state)
        key, own = jax.random.split(state.key)
        return self.form.run(state._replace(key=key), segment, own, update, taken)

    def _learned(
        self, state: LearnerState, segment: Batch, single: bool, taken: Any = None
    ) -> tuple[LearnerState, StepMetrics]:
        norms, state, outcome = self._run(state, segment, self.apply_gradient, taken)
        means, weight = weighted.means_of_steps(segment, outcome.losses)
        scale = self.loss.scale
        of_steps = means * scale, weight, outcome.predictions, outcome.losses * scale
        if single:
            of_steps = jax.tree.map(lambda x: x[0], of_steps)
        loss, weight, predictions, losses = of_steps
        return state, StepMetrics(loss, weight, jnp.mean(norms), predictions, losses)

    def _check_state(self, state: LearnerState) -> None:
        hint = "the state must come from the init of this learner"
        require_leading_axes("state.carry", state.carry, self.model.batch_size, hint=hint)

    def _stepped(self) -> SteppedForm:
        """The form, if `predict` and `update` can use it: if its segments are single steps.

        Raises:
          ValueError: if they are not.
        """
        if self.lengths.segment > 1:
            raise ValueError(
                f"predict and update take one time step, and this learner's segment_length is "
                f"{self.lengths.segment}: use step, or make it with segment_length=1 (a window of "
                f"several steps may stay)"
            )
        if not isinstance(self.form, SteppedForm):
            raise ValueError(
                "predict and update do not take a credit, which learns from whole segments: use step"
            )
        return self.form


def _started(cell: Cell, carry: Any, lanes: Array) -> Any:
    """The carry with some lanes at the start of a sequence, finite even where nothing is reset."""

    def leaf(initial: Any, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        lost = along(lanes, new) & ~jnp.isfinite(new)
        return jnp.where(lost, jnp.asarray(initial, new.dtype), new)

    return jax.tree.map(leaf, cell.initial_carry(), restarted(cell, carry, lanes))
