"""Online training of recurrent networks: KF-RTRL and the estimators it is compared with."""

from kfrtrl_jax import cells, estimators, linearization, optimizers, readouts, tasks
from kfrtrl_jax.base import Cell, InfluenceEstimator, Linearization, Site, SiteShape, Structure
from kfrtrl_jax.learner import Learner, LearnerState, StepMetrics, make_learner, predict
from kfrtrl_jax.tasks.base import Batch, Task

__all__ = [
    "Batch",
    "Cell",
    "InfluenceEstimator",
    "Learner",
    "LearnerState",
    "Linearization",
    "Site",
    "SiteShape",
    "StepMetrics",
    "Structure",
    "Task",
    "cells",
    "estimators",
    "linearization",
    "make_learner",
    "optimizers",
    "predict",
    "readouts",
    "tasks",
]
