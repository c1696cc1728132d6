"""The learner, its state and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float

from kfrtrl_jax._src.base import Array, Batch, Cell, InfluenceEstimator, Key, Readout
from kfrtrl_jax._src.learning.groups import GroupedGradients
from kfrtrl_jax._src.learning.pending import Pending
from kfrtrl_jax._src.learning.recovery import Forget
from kfrtrl_jax._src.linearization.linearizer import Linearizer

Parameters = dict[str, Any]


class LearnerState(NamedTuple):
    """Everything that learning carries from one segment to the next.

    Attributes:
      parameters: {"cell": ..., "readout": ...}.
      optimizer_state: the state of the optax optimizer.
      carry: the cell's carry, [B, ...].
      influence: the estimator's state, for the time before the kept steps.
      key: a PRNG key.
      fresh: [B], the lanes that have not made a step since `init` or `restart`: they have no past.
      kept: the linearizations of the last steps, see `kept.Kept`; empty if the window is one segment.
      credit: the credit estimator's state; empty without one.
    """

    parameters: Parameters
    optimizer_state: Any
    carry: Any
    influence: Any
    key: Key
    fresh: Bool[Array, " B"]
    kept: Any = ()
    credit: Any = ()


class StepMetrics(NamedTuple):
    """The metrics of one step. Without the axis K for a batch that came without it.

    Attributes:
      loss: [K], the weighted mean over lanes at each time step, in the loss's reported unit; 0 where no
        lane has a weight.
      weight: [K], the sum of the lanes' weights at each time step; B for a batch without weights.
      gradient_norm: the norm of the whole gradient before the optimizer, the mean over the step's
        updates.
      predictions: [K, B, ...], each made before the update that its loss takes part in. They cost
        nothing if they are not used.
      losses: [K, B], of each lane, in the reported unit; 0 where the weight is 0. Likewise.
    """

    loss: Float[Array, " K"]
    weight: Float[Array, " K"]
    gradient_norm: Float[Array, ""]
    predictions: Any
    losses: Any


class Outcome(NamedTuple):
    """What the steps of a segment came to, before any update.

    Attributes:
      losses: [K, B], as they are differentiated; 0 where the weight is 0.
      predictions: [K, B, ...].
    """

    losses: Float[Array, "K B"]
    predictions: Any


class Learner(NamedTuple):
    """Online learning as pure functions; the caller owns the loop.

    Attributes:
      init: key -> state.
      step: (state, segment) -> (state, metrics), ready for `jax.lax.scan`. A segment is a `Batch` with
        a leading axis of K time steps: inputs, targets and reset [K, B]. If K is 1, it may come without
        this axis, [B], and so do the metrics then.
      predict: (state, inputs [B, ...], reset [B] or None) -> (predictions [B, ...], pending), for a
        stream whose targets are known only after acting on the predictions. It changes nothing.
      update: (state, pending, targets [B, ...], weight [B] or None) -> (state, metrics): learns from
        the targets of what was predicted with this state. Both together are `step` with one forward
        pass in all. They need K = 1 and no credit.
      gradient: (state, segment) -> (gradient, state, loss [K]): `step` without the updates. If a
        segment has several updates, the leaves have a leading axis, one gradient per update, all at the
        same parameters.
      apply_gradient: (state, gradient) -> (state, the gradient's norm): one step of the optimizer.
      restart: (state, lanes [B]) -> state: these lanes start anew, whatever is in them: their carry is
        that at the start of a sequence (PRNG keys are kept, and what a cell keeps across sequences
        where it is finite), and they have no past. The others, and all that lanes share, stay as
        they are.
      lost: state -> [B], the lanes whose carry, influence or kept steps are not finite.
      diagnostics: state -> named scalars of the estimator, and of the credit under "credit/".
      linearizer: of the cell.
      segment_length: K.
      example_input: the shapes and types of one lane's input.
      unit: of the reported loss.
    """

    init: Callable[[Key], LearnerState]
    step: Callable[[LearnerState, Batch], tuple[LearnerState, StepMetrics]]
    predict: Callable[..., tuple[Any, Pending]]
    update: Callable[..., tuple[LearnerState, StepMetrics]]
    gradient: Callable[[LearnerState, Batch], tuple[Any, LearnerState, Float[Array, " K"]]]
    apply_gradient: Callable[[LearnerState, Any], tuple[LearnerState, Float[Array, ""]]]
    restart: Callable[[LearnerState, Bool[Array, " B"]], LearnerState]
    lost: Callable[[LearnerState], Bool[Array, " B"]]
    diagnostics: Callable[[LearnerState], dict[str, Float[Array, ""]]]
    linearizer: Linearizer
    segment_length: int
    example_input: Any
    unit: str


class Model(NamedTuple):
    """The parts of a learner that its gradients need.

    Attributes:
      cell: the recurrent network, for one lane.
      linearizer: of the cell.
      readout: from the cell's output to predictions, for one lane.
      loss: (prediction, target) -> scalar, for one lane.
      estimator: of the cell's influence matrix.
      forget: from `recovery.make_forget`, for the estimator.
      batch_size: B.
      groups: P, the groups of lanes over which gradients are summed first, see `groups`.
      pull: that of the estimator, for every site [P, m, g].
    """

    cell: Cell
    linearizer: Linearizer
    readout: Readout
    loss: Callable[[Any, Any], Float[Array, ""]]
    estimator: InfluenceEstimator
    forget: Forget | None
    batch_size: int
    groups: int
    pull: Callable[[Any, Float[Array, "B n"]], GroupedGradients]


# (state, gradient) -> (the state after an update, what is reported of it).
Update = Callable[[LearnerState, Any], tuple[LearnerState, Any]]


class Form(Protocol):
    """A form of a segment's gradient: exact along kept steps, as in the papers, or credited."""

    def run(
        self, state: LearnerState, segment: Batch, key: Key, update: Update, taken: Any = None
    ) -> tuple[Any, LearnerState, Outcome]:
        """(the reports of the segment's updates, [K / U, ...], the state after it, its outcome).

        Args:
          state: before the segment.
          segment: the batches of its steps, [K, B].
          key: for the estimator.
          update: what to do with the gradient of each update.
          taken: what `take` has returned, if it was called; K is 1 then.
        """


@runtime_checkable
class SteppedForm(Form, Protocol):
    """A form that can make a single step before its targets are known."""

    def take(self, state: LearnerState, batch: Batch) -> tuple[Any, Any]:
        """Makes a single step, [B]: (predictions [B, ...], what `run` takes as `taken`)."""
