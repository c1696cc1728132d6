"""Online training of recurrent networks: KF-RTRL and the estimators it is compared with."""

from kfrtrl_jax import (
    cells,
    control,
    credit,
    estimators,
    linearization,
    losses,
    optimizers,
    readouts,
    tasks,
)
from kfrtrl_jax._src.base import Batch, Task
from kfrtrl_jax._src.learning.learner import make_learner, predict
from kfrtrl_jax._src.learning.types import Learner, LearnerState, StepMetrics
from kfrtrl_jax._src.xla import jit
from kfrtrl_jax.base import (
    Cell,
    CreditEstimator,
    InfluenceEstimator,
    Linearization,
    Site,
    SiteJacobian,
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
    "SiteJacobian",
    "StepMetrics",
    "Structure",
    "Task",
    "cells",
    "control",
    "credit",
    "estimators",
    "jit",
    "linearization",
    "losses",
    "make_learner",
    "optimizers",
    "predict",
    "readouts",
    "tasks",
]
