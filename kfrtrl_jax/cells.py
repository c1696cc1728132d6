"""Recurrent cells as plain functions of one lane, without any derivatives written by hand."""

from kfrtrl_jax._src.cells.flax_cells import from_flax
from kfrtrl_jax._src.cells.function import from_function
from kfrtrl_jax._src.cells.gru import gru
from kfrtrl_jax._src.cells.lru import lru
from kfrtrl_jax._src.cells.lstm import lstm
from kfrtrl_jax._src.cells.recurrent_highway import recurrent_highway
from kfrtrl_jax._src.cells.registry import CELLS
from kfrtrl_jax._src.cells.tokens import on_tokens
from kfrtrl_jax._src.cells.vanilla import vanilla

__all__ = [
    "CELLS",
    "from_flax",
    "from_function",
    "gru",
    "lru",
    "lstm",
    "on_tokens",
    "recurrent_highway",
    "vanilla",
]
