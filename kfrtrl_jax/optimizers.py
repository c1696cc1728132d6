"""Optimizers, and their names in configs."""

from kfrtrl_jax._src.optimizers import OPTIMIZERS, adam, adamw, clip_cell, rmsprop, sgd

__all__ = [
    "OPTIMIZERS",
    "adam",
    "adamw",
    "clip_cell",
    "rmsprop",
    "sgd",
]
