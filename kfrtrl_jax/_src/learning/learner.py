"""`make_learner` builds `init` and `step` from the parts of a learner."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

from kfrtrl_jax._src import bounds, jax_internals
from kfrtrl_jax._src.base import Array, Cell, CreditEstimator, InfluenceEstimator, Loss, Readout
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.lanes import axes_of_lanes
from kfrtrl_jax._src.learning import credited, estimated, exact
from kfrtrl_jax._src.learning.door import Door, stacked
from kfrtrl_jax._src.learning.functions import Functions
from kfrtrl_jax._src.learning.given import as_cell, as_estimator, as_loss, as_optimizer, as_readout
from kfrtrl_jax._src.learning.groups import grouped
from kfrtrl_jax._src.learning.lengths import Lengths, make_lengths
from kfrtrl_jax._src.learning.recovery import make_forget, make_lost
from kfrtrl_jax._src.learning.types import Form, Learner, Model, Parameters
from kfrtrl_jax._src.linearization import self_check
from kfrtrl_jax._src.linearization.linearizer import make_linearizer
from kfrtrl_jax._src.one_step import require_one_lane


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
    the weights it was made with; the estimate of the influence matrix continues it into the time before
    them. Where a weight W is a function of parameters, such as an exponential, kept steps and influence
    are those of W, and the present dW/dtheta carries them on to the parameters. The influence is pushed
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
        second or two (see `linearization.check`; a warning tells that there was nothing finite to
        compare), and whether the cell is written for a batch. Inside a function that JAX is tracing the
        comparison is skipped.
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
    lengths = make_lengths(segment_length, update_every, window)
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
            if not (report := self_check.check(cell, example_input)).points:
                warnings.warn(str(report), stacklevel=2)
    if immediate == "estimated" and linearizer.output_of is None:
        raise UnsupportedCellError(
            'immediate="estimated" needs a cell whose output is a function of its new carry alone; '
            'use immediate="exact"'
        )
    axes = axes_of_lanes(estimator, linearizer.structure), 0
    pull = grouped(estimator.pull, axes, lane_groups)
    model = Model(
        cell, linearizer, readout, loss.function, estimator, forget, batch_size, lane_groups, pull
    )
    form: Form = exact.Exact(model, lengths)
    if credit is not None:
        form = credited.Credited(model, credit, share)
    elif immediate == "estimated":
        form = estimated.Estimated(model)
    door = Door(stacked(example_input), lengths.segment, batch_size, prediction, loss.function)
    return Functions(model, form, lengths, credit, optimizer, loss, influence_lost, door).learner()


def _check_forms(immediate: str, credit: CreditEstimator | None, lengths: Lengths) -> float | None:
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
    bounds.require("[0, 1]", **{"the share of a credit": credit.share})
    # One that is an array may be a tracer, which has no value to look at.
    return None if isinstance(credit.share, jax.Array) else credit.share
