"""Whether a mean over draws is the exact influence matrix, at small size."""

from __future__ import annotations

import functools

import numpy as np

from kfrtrl_jax._src.xla import known
from kfrtrl_jax.base import Cell, InfluenceEstimator
from kfrtrl_jax.studies import fidelity
from tests.trajectories import BATCH_SIZE, INPUT_SIZE

# Compiling costs more than running at this size: as little as possible of it, or a bit more where a
# push is drawn so often that the second it takes comes back.
QUICK = known({"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0})
FAIR = {**QUICK, "xla_backend_optimization_level": 1}
_OFTEN = 2**16


@functools.lru_cache(maxsize=32)
def reference(cell: Cell, steps: int = 8) -> fidelity.Reference:
    """A cell linearized once along random inputs; lane 1 starts anew in the middle."""
    along = fidelity.trajectory(
        cell,
        input_size=INPUT_SIZE,
        batch_size=BATCH_SIZE,
        steps=steps,
        seed=0,
        compiler_options=QUICK,
    )
    return fidelity.reference(along, seed=11, compiler_options=QUICK)


def deviations(
    estimator: InfluenceEstimator,
    cell: Cell,
    draws: int = 4096,
    steps: int = 8,
    segment_length: int = 1,
) -> np.ndarray:
    """Of a few random projections of the mean of G~ from those of G, in standard errors."""
    exact = reference(cell, steps)
    options = FAIR if draws * steps // segment_length > _OFTEN else QUICK
    return fidelity.deviations(
        estimator, exact, draws=draws, segment_length=segment_length, compiler_options=options
    )
