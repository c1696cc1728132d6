"""Cells by their names in configs."""

from collections.abc import Callable

from kfrtrl_jax._src.base import Cell
from kfrtrl_jax._src.cells.conv_lstm import conv_lstm
from kfrtrl_jax._src.cells.ctrnn import ctrnn
from kfrtrl_jax._src.cells.elstm import elstm
from kfrtrl_jax._src.cells.flax_cells import flax_gru, flax_optimized_lstm
from kfrtrl_jax._src.cells.gru import gru
from kfrtrl_jax._src.cells.lru import lru
from kfrtrl_jax._src.cells.lstm import lstm
from kfrtrl_jax._src.cells.lstm_columns import lstm_columns
from kfrtrl_jax._src.cells.ltc import ltc
from kfrtrl_jax._src.cells.min_gru import min_gru
from kfrtrl_jax._src.cells.recurrent_highway import recurrent_highway
from kfrtrl_jax._src.cells.rtu import rtu
from kfrtrl_jax._src.cells.s5 import s5
from kfrtrl_jax._src.cells.slstm import slstm
from kfrtrl_jax._src.cells.spiking import adlif, alif, lif
from kfrtrl_jax._src.cells.stack import stack
from kfrtrl_jax._src.cells.vanilla import vanilla

CELLS: dict[str, Callable[..., Cell]] = {
    "vanilla": vanilla,
    "recurrent_highway": recurrent_highway,
    "lstm": lstm,
    "gru": gru,
    "lru": lru,
    "rtu": rtu,
    "elstm": elstm,
    "min_gru": min_gru,
    "ctrnn": ctrnn,
    "ltc": ltc,
    "lstm_columns": lstm_columns,
    "s5": s5,
    "slstm": slstm,
    "conv_lstm": conv_lstm,
    "lif": lif,
    "alif": alif,
    "adlif": adlif,
    "stack": stack,
    "flax_optimized_lstm": flax_optimized_lstm,
    "flax_gru": flax_gru,
}
