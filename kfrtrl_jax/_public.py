"""The public names of the library, all of which are imported when the first of them is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from pathlib import Path

    from kfrtrl_jax.training.loading import Loaded


def load(workdir: str | Path, which: str = "") -> Loaded:
    """The network of a finished run of `kfrtrl train`, see `training.loading.load`.

    Args:
      workdir: of the run.
      which: "best" or "final" parameters; "" for the best ones if there are any.
    """
    # What runs need, such as Orbax, is imported only here.
    from kfrtrl_jax.training import loading

    return loading.load(workdir, which)


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
    "load",
    "losses",
    "make_learner",
    "optimizers",
    "predict",
    "readouts",
    "tasks",
]
