"""Flax cells at a small size, in float64."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from kfrtrl_jax import cells
from tests.trajectories import INPUT_SIZE

X = jax.ShapeDtypeStruct((INPUT_SIZE,), jnp.float64)
F64 = {"param_dtype": jnp.float64, "dtype": jnp.float64}


def nnx_cell(kind, **kwargs):
    return cells.from_flax(lambda rngs: kind(INPUT_SIZE, 4, rngs=rngs, **F64, **kwargs))


CELLS = {
    "linen_simple": lambda: cells.from_flax(nn.SimpleCell(4, **F64), X),
    "linen_lstm": lambda: cells.from_flax(nn.LSTMCell(4, **F64), X),
    "linen_optimized_lstm": lambda: cells.from_flax(nn.OptimizedLSTMCell(4, **F64), X),
    "linen_gru": lambda: cells.from_flax(nn.GRUCell(4, **F64), X),
    "linen_mgu": lambda: cells.from_flax(nn.MGUCell(4, **F64), X),
    "nnx_simple": lambda: nnx_cell(nnx.SimpleCell),
    "nnx_lstm": lambda: nnx_cell(nnx.LSTMCell),
    "nnx_optimized_lstm": lambda: nnx_cell(nnx.OptimizedLSTMCell),
    "nnx_gru": lambda: nnx_cell(nnx.GRUCell),
}


class LayerNormLSTM(nn.RNNCellBase):
    """A stack of two cells with layer normalization and a skip connection."""

    features: int
    type: Any = jnp.float64

    @nn.compact
    def __call__(self, carry, x):
        kinds = {"param_dtype": self.type, "dtype": self.type}
        first, second = carry
        first, y = nn.GRUCell(self.features, **kinds)(first, x)
        y = nn.LayerNorm(**kinds)(y)
        second, z = nn.OptimizedLSTMCell(self.features, **kinds)(second, jnp.concatenate([x, y]))
        return (first, second), nn.Dense(self.features, **kinds)(y + z)

    def initialize_carry(self, rng, input_shape):
        zeros = jnp.zeros(self.features, self.type)
        return zeros, (zeros, zeros)

    @property
    def num_feature_axes(self):
        return 1
