"""Losses of predictions, with the unit they are reported in, and scores."""

from kfrtrl_jax._src.base import Loss, Score
from kfrtrl_jax._src.losses import (
    accuracy,
    cross_entropy,
    normalized_square,
    squared_error,
    temporal_difference,
)

__all__ = [
    "Loss",
    "Score",
    "accuracy",
    "cross_entropy",
    "normalized_square",
    "squared_error",
    "temporal_difference",
]
