"""The minimal gated recurrent unit."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import gaussian


def min_gru(*, input_size: int, hidden_size: int, init_scale: float = 0.0) -> Cell:
    """The minGRU, whose gate and candidate do not read the state (Feng et al., 2024, arXiv:2410.01201).

    [z; c] = W^T [x; 1], h' = (1 - sigmoid(z)) * h + sigmoid(z) * c. J is diagonal:
    `diagonal_rtrl(unit_size=1)` is exact.

    Args:
      input_size: length of x.
      hidden_size: n, length of h, which is both carry and output.
      init_scale: standard deviation of W; 0 means (input_size + 1)^-1/2.
    """

    def init(key: Key) -> dict[str, Array]:
        return {"weights": gaussian(key, (input_size + 1, 2 * hidden_size), init_scale)}

    def step(params: dict[str, Array], h: Array, x: Array) -> tuple[Array, Array]:
        gate, candidate = jnp.split(
            jnp.concatenate([x, jnp.ones(1, h.dtype)]) @ params["weights"], 2
        )
        z = jax.nn.sigmoid(gate)
        h = (1 - z) * h + z * candidate
        return h, h

    return Cell(init, lambda: jnp.zeros(hidden_size), step)
