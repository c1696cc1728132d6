"""Online training of recurrent networks: KF-RTRL and the estimators it is compared with."""

from kfrtrl_jax import cells, credit, estimators, linearization, optimizers, readouts, tasks
from kfrtrl_jax._src.compilation import jit
from kfrtrl_jax._src.learner import Learner, LearnerState, StepMetrics, make_learner, predict
from kfrtrl_jax._src.tasks.base import Batch, Task
from kfrtrl_jax.base import (
    Cell,
    CreditEstimator,
    InfluenceEstimator,
    Linearization,
    Site,
    SiteShape,
    Structure,
)

__all__ = [
    "Batch",
    "Cell",
    "CreditEstimator",
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
    "credit",
    "estimators",
    "jit",
    "linearization",
    "make_learner",
    "optimizers",
    "predict",
    "readouts",
    "tasks",
]
