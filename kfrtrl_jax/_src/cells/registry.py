"""Cells by their names in configs."""

from collections.abc import Callable

from kfrtrl_jax._src.base import Cell
from kfrtrl_jax._src.cells.flax_cells import flax_gru, flax_optimized_lstm
from kfrtrl_jax._src.cells.gru import gru
from kfrtrl_jax._src.cells.lru import lru
from kfrtrl_jax._src.cells.lstm import lstm
from kfrtrl_jax._src.cells.recurrent_highway import recurrent_highway
from kfrtrl_jax._src.cells.vanilla import vanilla

CELLS: dict[str, Callable[..., Cell]] = {
    "vanilla": vanilla,
    "recurrent_highway": recurrent_highway,
    "lstm": lstm,
    "gru": gru,
    "lru": lru,
    "flax_optimized_lstm": flax_optimized_lstm,
    "flax_gru": flax_gru,
}
