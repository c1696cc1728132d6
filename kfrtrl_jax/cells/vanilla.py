"""The tanh recurrent network."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kfrtrl_jax.base import Array, Cell, Key
from kfrtrl_jax.cells.initializers import gaussian


def vanilla(*, input_size: int, hidden_size: int, init_scale: float = 0.0) -> Cell:
    """h' = tanh(W^T [x; h; 1]) (Elman, 1990).

    Args:
      input_size: length of x.
      hidden_size: n, length of h, which is both carry and output.
      init_scale: standard deviation of W; 0 means (input_size + n + 1)^-1/2.
    """
    rows = input_size + hidden_size + 1

    def init(key: Key) -> dict[str, Array]:
        return {"weights": gaussian(key, (rows, hidden_size), init_scale)}

    def step(params: dict[str, Array], h: Array, x: Array) -> tuple[Array, Array]:
        h = jnp.tanh(jnp.concatenate([x, h, jnp.ones(1, h.dtype)]) @ params["weights"])
        return h, h

    return Cell(init, lambda: jnp.zeros(hidden_size, jax.dtypes.canonicalize_dtype(float)), step)
