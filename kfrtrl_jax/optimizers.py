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

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "ParameterAverage",
    "Schedule",
    "average_parameters",
    "clip_all",
    "clip_cell",
]
