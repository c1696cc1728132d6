"""Readouts: from a cell's output to predictions."""

from kfrtrl_jax._src.base import Readout
from kfrtrl_jax._src.brought_readouts import from_equinox, from_flax
from kfrtrl_jax._src.precision import readout_in as in_dtype
from kfrtrl_jax._src.readouts import linear

__all__ = [
    "Readout",
    "from_equinox",
    "from_flax",
    "in_dtype",
    "linear",
]
