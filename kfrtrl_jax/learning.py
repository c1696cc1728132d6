"""Learners: a cell, a readout, a loss, an estimator and an optimizer, as `init` and `step`."""

from kfrtrl_jax._src.learning.averages import evaluated_parameters
from kfrtrl_jax._src.learning.export import export
from kfrtrl_jax._src.learning.learner import make_learner, predict
from kfrtrl_jax._src.learning.pending import Pending
from kfrtrl_jax._src.learning.run import RunState, run
from kfrtrl_jax._src.learning.types import Learner, LearnerState, StepMetrics

__all__ = [
    "Learner",
    "LearnerState",
    "Pending",
    "RunState",
    "StepMetrics",
    "evaluated_parameters",
    "export",
    "make_learner",
    "predict",
    "run",
]
