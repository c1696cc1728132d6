"""Recurrent cells as plain functions of one lane; none of them knows of derivatives."""

from collections.abc import Callable

from kfrtrl_jax.base import Cell
from kfrtrl_jax.cells.flax_cells import flax_gru, flax_optimized_lstm, from_flax
from kfrtrl_jax.cells.function import from_function
from kfrtrl_jax.cells.gru import gru
from kfrtrl_jax.cells.lru import lru
from kfrtrl_jax.cells.lstm import lstm
from kfrtrl_jax.cells.recurrent_highway import recurrent_highway
from kfrtrl_jax.cells.tokens import on_tokens
from kfrtrl_jax.cells.vanilla import vanilla

CELLS: dict[str, Callable[..., Cell]] = {
    "vanilla": vanilla,
    "recurrent_highway": recurrent_highway,
    "lstm": lstm,
    "gru": gru,
    "lru": lru,
    "flax_optimized_lstm": flax_optimized_lstm,
    "flax_gru": flax_gru,
}

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
