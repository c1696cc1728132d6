"""A cell, a readout, a loss, an estimator and an optimizer, put together."""

from kfrtrl_jax._src.learner import Learner, LearnerState, StepMetrics, make_learner, predict

__all__ = [
    "Learner",
    "LearnerState",
    "StepMetrics",
    "make_learner",
    "predict",
]
