"""A cell along random inputs, linearized once, and what exact RTRL says of it."""

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
