"""`make_learner` builds `init` and `step` from the parts of a learner."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax._src.base import (
    Array,
    Batch,
    Cell,
    CreditEstimator,
    InfluenceEstimator,
    Key,
    Loss,
    Readout,
)
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.lanes import along, initial_lanes, restarted
from kfrtrl_jax._src.learning import credited, estimated, exact, kept, trees, weighted
from kfrtrl_jax._src.learning.door import Door, stacked
from kfrtrl_jax._src.learning.given import as_cell, as_estimator, as_loss, as_optimizer, as_readout
from kfrtrl_jax._src.learning.groups import grouped
from kfrtrl_jax._src.learning.pending import Pending, put_aside, taken_up
from kfrtrl_jax._src.learning.recovery import axes_of_lanes, lanes_lost, make_forget, make_lost
from kfrtrl_jax._src.learning.types import (
    Learner,
    LearnerState,
    Model,
    Parameters,
    StepMetrics,
)
from kfrtrl_jax._src.linearization import self_check
from kfrtrl_jax._src.linearization.linearizer import make_linearizer
from kfrtrl_jax._src.one_step import require_one_lane
from kfrtrl_jax._src.shapes import require_key, require_leading_axes, require_shape


def predict(
    cell: Cell, readout: Readout, parameters: Parameters, carry: Any, x: Any
) -> tuple[Any, Array]:
    """One step of one lane without learning: (new carry, prediction)."""
    carry, output = cell.step(parameters["cell"], carry, x)
    return carry, readout.apply(parameters["readout"], output)


def make_learner(
    cell: Any,
    readout: Any,
    estimator: InfluenceEstimator | str,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    example_input: Any,
    segment_length: int = 1,
    update_every: int | None = None,
    window: int | None = None,
    immediate: Literal["exact", "estimated"] = "exact",
    credit: CreditEstimator | None = None,
    loss: Loss | Callable[[Any, Any], Array] | None = None,
    check: bool = True,
    lane_groups: int = 1,
) -> Learner:
    """Makes a learner.

    A step processes a segment of K time steps and updates the parameters after every U of them. With
    immediate="exact", an update follows the gradient of the mean loss over lanes and over its own U
    time steps, weighted by the batches' weights. This gradient is exact along the kept steps, each at
    the parameters it was made with; the estimate of the influence matrix continues it into the time
    before them. The influence is pushed
    once per segment, over K steps. So U = 1 updates the parameters at every time step whatever K is;
    `truncated()` gives truncated backpropagation; and `truncated()` with K = U = 1 and a window of L
    steps is TBPTT(L) with an update at every step.

    With immediate="estimated", the papers' form, the loss at time t is contracted with the estimate
    G~_t, which already includes step t: the immediate Jacobian is then part of the noise.

    With a credit, an estimate of how a state affects the losses after its segment, the gradient is

        (backpropagation inside the segment) + (1 - share) (dL/ds at its start) G~ at its start
            + share (credit at its end, pulled back through the segment).

    Args:
      cell: the recurrent network, for one lane: a `Cell`; an NNX, Linen or Equinox cell, unmodified; or
        a function of `rngs` (NNX) or `key` (Equinox) that makes one. A module that was made with
        parameters starts from these, whatever key `init` is given; Linen cells and functions draw new
        ones. `cells.from_flax` and `cells.from_equinox` take further arguments.
      readout: from the cell's output to predictions, for one lane: a `Readout`, or a module of Flax or
        Equinox, likewise.
      estimator: of the cell's influence matrix; or its text, as in configs:
        "average(kf_rtrl, copies=4)".
      optimizer: any optax transformation of {"cell": ..., "readout": ...}.
      batch_size: B, the number of lanes.
      example_input: one lane's input x, for its shape and type.
      segment_length: K, time steps per push of the influence.
      update_every: U, time steps per update, a divisor of K; K if None.
      window: the number of kept steps, a multiple of K; K if None. The oldest K of them are pushed once
        K new ones have come, so the exact part of a gradient reaches back between window - K and window
        steps before the update's own.
      immediate: "exact" or "estimated", see above; "estimated" needs K = 1.
      credit: estimates how states affect the losses after their segment, see above. It costs a second
        backward pass through the segment, unless its share is the constant 1. It needs U = K and a
        window of K.
      loss: (prediction, target) -> scalar, for one lane, or a `Loss` that also says in which unit it is
        reported; the cross-entropy of logits with integer labels, in bits, if None.
      check: whether to compare the cell's linearization with `jax.vjp` first, once, which takes a
        second or two (see `linearization.check`), and whether the cell is written for a batch. Inside a
        function that JAX is tracing the comparison is skipped.
      lane_groups: of so many groups of consecutive lanes each sums up its own part of the gradient
        before the groups are added. Where lanes are spread over so many devices, the gradient crosses
        between them once. It divides B, and changes rounding alone.

    Returns:
      The learner. Its `step` and `gradient` raise ValueError for a segment of wrong shapes or types.

    Raises:
      ValueError: if what is given is not what it should be (a class or a function that makes it, a cell
        that is written for a batch, a readout of another width), saying in one line what to do; if the
        lengths or groups do not fit together, if immediate is unknown or is
        "estimated" beside a credit, or if the credit's share is outside [0, 1].
      UnsupportedCellError: if the cell has no structure that the estimator can use, cannot be
        linearized, or fails the check.
    """
    lengths = _lengths(segment_length, update_every, window)
    if lane_groups < 1 or batch_size % lane_groups:
        raise ValueError(f"lane_groups must divide batch_size, got {lane_groups} and {batch_size}")
    share = _check_forms(immediate, credit, lengths)
    cell = as_cell(cell, example_input)
    estimator, optimizer, loss = as_estimator(estimator), as_optimizer(optimizer), as_loss(loss)
    if check:
        require_one_lane(cell, example_input, batch_size)
    linearizer = make_linearizer(cell, example_input, batch_size)
    # This calls the estimator's init, which refuses unsupported cells: now, not when training starts.
    forget = make_forget(estimator, linearizer.structure)
    influence_lost = make_lost(estimator, linearizer.structure)
    readout, prediction = as_readout(readout, linearizer.output)
    if check and not jax_internals.is_tracing():
        # Under `jax.vmap` the cell may hold tracers, which have no value to compare.
        with contextlib.suppress(jax.errors.TracerArrayConversionError):
            self_check.check(cell, example_input)
    if immediate == "estimated" and linearizer.output_of is None:
        raise UnsupportedCellError(
            'immediate="estimated" needs a cell whose output is a function of its new carry alone; '
            'use immediate="exact"'
        )
    scale = loss.scale
    door = Door(stacked(example_input), lengths.segment, batch_size, prediction, loss.function)
    axes = axes_of_lanes(estimator, linearizer.structure), 0
    pull = grouped(estimator.pull, axes, lane_groups)
    model = Model(
        cell, linearizer, readout, loss.function, estimator, forget, batch_size, lane_groups, pull
    )

    def init(key: Key) -> LearnerState:
        require_key("key", key)
        cell_key, readout_key, key, *rest = jax.random.split(key, 3 if credit is None else 4)
        parameters = {"cell": cell.init(cell_key), "readout": readout.init(readout_key)}
        carry = initial_lanes(cell, batch_size)
        ring: Any = ()
        if lengths.earlier:
            inputs = stacked(example_input, batch_size)
            ring = kept.empty(model, parameters["cell"], carry, inputs, lengths.window)
        return LearnerState(
            parameters,
            optimizer.init(trees.partition(parameters)[0]),
            carry,
            estimator.init(linearizer.structure),
            key,
            jnp.ones(batch_size, bool),
            ring,
            () if credit is None else credit.init(linearizer.structure, *rest),
        )

    def run(state: LearnerState, segment: Batch, update: exact.Update, taken: Any = None) -> Any:
        """(the reports of its updates, [K / U, ...], the state after it, the outcome)."""
        check_state(state)
        key, own = jax.random.split(state.key)
        state = state._replace(key=key)
        if immediate == "exact" and credit is None:
            return exact.run_segment(model, lengths, state, segment, own, update, taken)
        if credit is None:
            gradient, state, outcome = estimated.run_step(model, state, segment, own, taken)
        else:
            gradient, state, outcome = credited.run_segment(
                model, credit, share, state, segment, own
            )
        state, report = update(state, gradient)
        return jax.tree.map(lambda x: x[None], report), state, outcome

    def updated(state: LearnerState, gradient: Any) -> tuple[LearnerState, Float[Array, ""]]:
        """The state after an update, and the gradient's norm."""
        floats, constants = trees.partition(state.parameters)
        # JAX's gradient by a complex number points the wrong way along its imaginary part.
        descending = jax.tree.map(jnp.conj, gradient)
        updates, optimizer_state = optimizer.update(descending, state.optimizer_state, floats)
        parameters = trees.combine(optax.apply_updates(floats, updates), constants)
        new = state._replace(parameters=parameters, optimizer_state=optimizer_state)
        return new, optax.tree.norm(gradient)

    def check_state(state: LearnerState) -> None:
        hint = "the state must come from the init of this learner"
        require_leading_axes("state.carry", state.carry, batch_size, hint=hint)

    def step(state: LearnerState, segment: Batch) -> tuple[LearnerState, StepMetrics]:
        segment, single = door.opened(segment)
        return learned(state, segment, single)

    def learned(
        state: LearnerState, segment: Batch, single: bool, taken: Any = None
    ) -> tuple[LearnerState, StepMetrics]:
        norms, state, outcome = run(state, segment, updated, taken)
        means, weight = weighted.means_of_steps(segment, outcome.losses)
        of_steps = means * scale, weight, outcome.predictions, outcome.losses * scale
        if single:
            of_steps = jax.tree.map(lambda x: x[0], of_steps)
        loss, weight, predictions, losses = of_steps
        return state, StepMetrics(loss, weight, jnp.mean(norms), predictions, losses)

    def gradient(state: LearnerState, segment: Batch) -> tuple[Any, LearnerState, Array]:
        segment, single = door.opened(segment)
        gradients, state, outcome = run(state, segment, lambda state, gradient: (state, gradient))
        if lengths.updates == 1:
            gradients = jax.tree.map(lambda g: g[0], gradients)
        means = weighted.means_of_steps(segment, outcome.losses)[0] * scale
        return gradients, state, means[0] if single else means

    def predict(
        state: LearnerState, inputs: Any, reset: Bool[Array, " B"] | None = None
    ) -> tuple[Any, Pending]:
        _require_single_steps(lengths, credit)
        check_state(state)
        door.check_inputs(inputs, (batch_size,))
        reset = jnp.zeros(batch_size, bool) if reset is None else reset
        require_shape("reset", reset, batch_size)
        batch = Batch(jax.tree.map(jnp.asarray, inputs), None, jnp.asarray(reset, bool))
        if immediate == "estimated":
            taken: Any = estimated.take(model, state, batch)
            predictions = taken.predictions
        else:
            taken = exact.take(model, state, jax.tree.map(lambda x: x[None], batch))
            predictions = jax.tree.map(lambda x: x[0], taken.forward.predictions)
        return predictions, put_aside((batch, taken), state)

    def update(
        state: LearnerState, pending: Pending, targets: Any, weight: Array | None = None
    ) -> tuple[LearnerState, StepMetrics]:
        _require_single_steps(lengths, credit)
        if not isinstance(pending, Pending):
            raise ValueError(
                f"update takes what predict has left pending, and the targets, got a "
                f"{type(pending).__name__}; for an optimizer's step with a gradient of your own use "
                f"apply_gradient"
            )
        batch, taken = taken_up(pending, state)
        segment, _ = door.opened(batch._replace(targets=targets, weight=weight))
        return learned(state, segment, True, taken)

    def restart(state: LearnerState, lanes: Array) -> LearnerState:
        require_shape("lanes", lanes, batch_size)
        influence, ring = state.influence, state.kept
        if forget is not None:
            influence = forget(influence, lanes)
        if lengths.earlier:
            ring = kept.forgotten(ring, lanes)
        return state._replace(
            carry=_started(cell, state.carry, lanes),
            influence=influence,
            fresh=state.fresh | lanes,
            kept=ring,
        )

    def lost(state: LearnerState) -> Array:
        carry = lanes_lost([(0, x) for x in jax.tree.leaves(state.carry)], batch_size)
        found = carry | influence_lost(state.influence)
        return found | kept.lost(state.kept) if lengths.earlier else found

    def diagnostics(state: LearnerState) -> dict[str, Float[Array, ""]]:
        named = {} if credit is None else credit.diagnostics(state.credit)
        return {
            **estimator.diagnostics(state.influence),
            **{f"credit/{name}": value for name, value in named.items()},
        }

    return Learner(
        init=init,
        step=step,
        predict=predict,
        update=update,
        gradient=gradient,
        apply_gradient=updated,
        restart=restart,
        lost=lost,
        diagnostics=diagnostics,
        linearizer=linearizer,
        segment_length=lengths.segment,
        example_input=stacked(example_input),
        unit=loss.unit,
    )


def _started(cell: Cell, carry: Any, lanes: Array) -> Any:
    """The carry with some lanes at the start of a sequence, finite even where nothing is reset."""

    def leaf(initial: Any, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        lost = along(lanes, new) & ~jnp.isfinite(new)
        return jnp.where(lost, jnp.asarray(initial, new.dtype), new)

    return jax.tree.map(leaf, cell.initial_carry(), restarted(cell, carry, lanes))


def _require_single_steps(lengths: exact.Lengths, credit: CreditEstimator | None) -> None:
    """Refuses `predict` and `update` for a learner whose updates need more than one time step."""
    if lengths.segment > 1:
        raise ValueError(
            f"predict and update take one time step, and this learner's segment_length is "
            f"{lengths.segment}: use step, or make it with segment_length=1 (a window of several steps "
            f"may stay)"
        )
    if credit is not None:
        raise ValueError(
            "predict and update do not take a credit, which learns from whole segments: use step"
        )


def _lengths(segment_length: int, update_every: int | None, window: int | None) -> exact.Lengths:
    update_every = segment_length if update_every is None else update_every
    window = segment_length if window is None else window
    if segment_length < 1:
        raise ValueError(f"segment_length must be at least 1, got {segment_length}")
    if update_every < 1 or segment_length % update_every:
        raise ValueError(
            f"update_every must divide segment_length, got {update_every} and {segment_length}"
        )
    if window < segment_length or window % segment_length:
        raise ValueError(
            f"window must be a multiple of segment_length, got {window} and {segment_length}"
        )
    return exact.Lengths(segment_length, update_every, window)


def _check_forms(
    immediate: str, credit: CreditEstimator | None, lengths: exact.Lengths
) -> float | None:
    """Refuses arguments that exclude each other; returns the credit's share if its value is known."""
    if immediate not in ("exact", "estimated"):
        raise ValueError(f'immediate must be "exact" or "estimated", got {immediate!r}')
    if immediate == "estimated" and credit is not None:
        raise ValueError(
            'a credit is pulled back through the segment, which immediate="estimated" does not '
            'backpropagate through; use immediate="exact"'
        )
    if immediate == "estimated" and lengths.window > 1:
        raise ValueError(
            'immediate="estimated" pushes the influence at every step and keeps no steps: it needs '
            f"segment_length=1 and window=1, got {lengths.segment} and {lengths.window}"
        )
    if credit is None:
        return None
    if not lengths.update == lengths.segment == lengths.window:
        raise ValueError(
            "a credit closes a segment with a single update: it needs update_every and window equal to "
            f"segment_length, got {lengths.update}, {lengths.window} and {lengths.segment}"
        )
    # A share that is an array may be a tracer, which has no value to look at.
    if isinstance(credit.share, jax.Array):
        return None
    if not 0 <= credit.share <= 1:
        raise ValueError(f"the share of a credit must be in [0, 1], got {credit.share}")
    return credit.share
