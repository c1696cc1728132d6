"""Readouts: from a cell's output to predictions."""

from kfrtrl_jax._src.readouts import Readout, linear

__all__ = [
    "Readout",
    "linear",
]
