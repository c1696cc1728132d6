"""Recurrent cells as plain functions of one lane, without any derivatives written by hand."""

from kfrtrl_jax._src.cells.conv_lstm import conv_lstm
from kfrtrl_jax._src.cells.ctrnn import ctrnn
from kfrtrl_jax._src.cells.elstm import elstm
from kfrtrl_jax._src.cells.equinox_cells import from_equinox
from kfrtrl_jax._src.cells.flax_cells import from_flax
from kfrtrl_jax._src.cells.function import from_function
from kfrtrl_jax._src.cells.gru import gru
from kfrtrl_jax._src.cells.lru import lru
from kfrtrl_jax._src.cells.lstm import lstm
from kfrtrl_jax._src.cells.lstm_columns import lstm_columns
from kfrtrl_jax._src.cells.ltc import ltc
from kfrtrl_jax._src.cells.min_gru import min_gru
from kfrtrl_jax._src.cells.recurrent_highway import recurrent_highway
from kfrtrl_jax._src.cells.registry import CELLS
from kfrtrl_jax._src.cells.rtu import rtu
from kfrtrl_jax._src.cells.s5 import s5
from kfrtrl_jax._src.cells.slstm import slstm
from kfrtrl_jax._src.cells.spiking import adlif, alif, lif
from kfrtrl_jax._src.cells.stack import stack, stack_of
from kfrtrl_jax._src.cells.tokens import on_tokens
from kfrtrl_jax._src.cells.vanilla import vanilla
from kfrtrl_jax._src.precision import cell_in as in_dtype

__all__ = [
    "CELLS",
    "adlif",
    "alif",
    "conv_lstm",
    "ctrnn",
    "elstm",
    "from_equinox",
    "from_flax",
    "from_function",
    "gru",
    "in_dtype",
    "lif",
    "lru",
    "lstm",
    "lstm_columns",
    "ltc",
    "min_gru",
    "on_tokens",
    "recurrent_highway",
    "rtu",
    "s5",
    "slstm",
    "stack",
    "stack_of",
    "vanilla",
]
