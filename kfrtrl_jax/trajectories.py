"""Cells linearized along random inputs, and exact RTRL along these trajectories."""

from kfrtrl_jax._src.trajectory import (
    Reference,
    Trajectory,
    drawn,
    gradients,
    in_segments,
    push_all,
    reference,
    trajectory,
)

__all__ = [
    "Reference",
    "Trajectory",
    "drawn",
    "gradients",
    "in_segments",
    "push_all",
    "reference",
    "trajectory",
]
