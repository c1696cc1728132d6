"""Readouts: from a cell's output to predictions."""

from kfrtrl_jax._src.base import Readout
from kfrtrl_jax._src.readouts import linear

__all__ = [
    "Readout",
    "linear",
]
