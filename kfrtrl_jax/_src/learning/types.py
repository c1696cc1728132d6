"""What learning carries and reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kfrtrl_jax._src.base import Array, Cell, InfluenceEstimator, Key
from kfrtrl_jax._src.learning.recovery import Forget
from kfrtrl_jax._src.linearization.linearizer import Linearizer
from kfrtrl_jax._src.readouts import Readout

Loss = Callable[[Array, Any], Array]
Parameters = dict[str, Any]


class LearnerState(NamedTuple):
    """Everything that learning carries from one segment to the next.

    Attributes:
      parameters: {"cell": ..., "readout": ...}.
      optimizer_state: optax's.
      carry: the cell's, [B, ...].
      influence: the estimator's state, of the time before the kept steps.
      key: a PRNG key.
      fresh: [B], the lanes that have not made a step since `init`: they have no past.
      kept: the linearizations of the last steps, see `kept.Kept`; empty where the window is the
      segment. credit: the credit estimator's state; empty without one.
    """

    parameters: Parameters
    optimizer_state: Any
    carry: Any
    influence: Any
    key: Key
    fresh: Array
    kept: Any = ()
    credit: Any = ()


class StepMetrics(NamedTuple):
    """What one step reports.

    Attributes:
      loss: [K], the mean over lanes at each time step, in bits.
      gradient_norm: of the whole gradient, before the optimizer; the mean over the step's updates.
    """

    loss: Array
    gradient_norm: Array


class Learner(NamedTuple):
    """Online learning as pure functions; the caller owns the loop.

    Attributes:
      init: key -> state.
      step: (state, segment) -> (state, metrics), fit for `jax.lax.scan`. A segment is a `Batch` with a
        leading axis of K time steps: inputs, targets and reset [K, B].
      gradient: (state, segment) -> (gradient, state, loss [K] in nats): step without the updates. Where
        a segment has several updates there is a gradient for each, all at the same parameters: their
        leaves have a leading axis.
      diagnostics: state -> named scalars of the estimator, and of the credit under "credit/".
      linearizer: the cell's.
    """

    init: Callable[[Key], LearnerState]
    step: Callable[[LearnerState, Any], tuple[LearnerState, StepMetrics]]
    gradient: Callable[[LearnerState, Any], tuple[Any, LearnerState, Array]]
    diagnostics: Callable[[LearnerState], dict[str, Array]]
    linearizer: Linearizer


class Model(NamedTuple):
    """What is trained.

    Attributes:
      cell: the recurrent network, for one lane.
      linearizer: the cell's.
      readout: from the cell's output to predictions, for one lane.
      loss: (prediction, target) -> scalar in nats, for one lane.
      estimator: of the cell's influence matrix.
      forget: from `recovery.make_forget`, of the estimator.
      batch_size: B.
    """

    cell: Cell
    linearizer: Linearizer
    readout: Readout
    loss: Loss
    estimator: InfluenceEstimator
    forget: Forget | None
    batch_size: int
