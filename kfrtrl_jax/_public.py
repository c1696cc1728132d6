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
    register,
    tasks,
)
from kfrtrl_jax._src.base import Batch, Task
from kfrtrl_jax._src.learning.export import export
from kfrtrl_jax._src.learning.learner import make_learner, predict
from kfrtrl_jax._src.learning.run import RunState, run
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
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from kfrtrl_jax.studies.fidelity import CellCertificate
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


def certify(
    cell: Any,
    example_input: Any,
    estimators: Sequence[str] | Mapping[str, InfluenceEstimator] | None = None,
    **settings: Any,
) -> CellCertificate:
    """What estimators are worth on a cell, as a table, see `studies.fidelity.own_cell.certify`.

    Args:
      cell: ours, or one of Flax or Equinox; a small one, as each is compared with exact RTRL.
      example_input: one lane's input.
      estimators: as text, or by name; a selection if None.
      **settings: segment_length, batch_size, steps, draws, rounds and seed.
    """
    # A study of the library, which it needs for nothing else.
    from kfrtrl_jax.studies import fidelity

    if estimators is not None:
        settings["estimators"] = estimators
    return fidelity.certify_cell(cell, example_input, **settings)


__all__ = [
    "Batch",
    "Cell",
    "CreditEstimator",
    "InfluenceEstimator",
    "Learner",
    "LearnerState",
    "Linearization",
    "RunState",
    "Site",
    "SiteJacobian",
    "StepMetrics",
    "Structure",
    "Task",
    "cells",
    "certify",
    "control",
    "credit",
    "estimators",
    "export",
    "jit",
    "linearization",
    "load",
    "losses",
    "make_learner",
    "optimizers",
    "predict",
    "readouts",
    "register",
    "run",
    "tasks",
]
