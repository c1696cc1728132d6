"""Optax's optimizers and schedules, and their names in configs; what a learner adds to them."""

from kfrtrl_jax._src.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    ParameterAverage,
    Schedule,
    average_parameters,
    clip_all,
    clip_cell,
)
from kfrtrl_jax._src.precision import Float32Copy, in_float32

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Float32Copy",
    "ParameterAverage",
    "Schedule",
    "average_parameters",
    "clip_all",
    "clip_cell",
    "in_float32",
]
