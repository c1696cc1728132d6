"""The element-wise LSTM."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import gaussian


def elstm(*, input_size: int, hidden_size: int, init_scale: float = 0.0) -> Cell:
    """The eLSTM (Irie, Gopalakrishnan and Schmidhuber, 2024, arXiv:2305.19044).

    Its recurrence is element-wise, with w_f and w_z vectors:

        f = sigmoid(F^T [x; 1] + w_f * c), z = tanh(Z^T [x; 1] + w_z * c), c' = f * c + (1 - f) * z

    The output is sigmoid(O^T [x; c'; 1]) * c'. Its gate has a full matrix of c', through which nothing
    returns into the state: `diagonal_rtrl(unit_size=1)` is exact.

    Args:
      input_size: length of x.
      hidden_size: n, length of c, which is the carry, and of the output.
      init_scale: standard deviation of all weights; 0 means one over the square root of the number of
        weights into a pre-activation: input_size + 2 for f and z, input_size + hidden_size + 1 for the
        output gate.
    """

    def init(key: Key) -> dict[str, Array]:
        recurrence_key, output_key = jax.random.split(key)
        rows = gaussian(recurrence_key, (input_size + 2, 2 * hidden_size), init_scale)
        return {
            "input": rows[:-1],
            "recurrent": rows[-1],
            "output": gaussian(output_key, (input_size + hidden_size + 1, hidden_size), init_scale),
        }

    def step(params: dict[str, Array], c: Array, x: Array) -> tuple[Array, Array]:
        one = jnp.ones(1, c.dtype)
        forget, candidate = jnp.split(jnp.concatenate([x, one]) @ params["input"], 2)
        forget_recurrent, candidate_recurrent = jnp.split(params["recurrent"], 2)
        f = jax.nn.sigmoid(forget + forget_recurrent * c)
        z = jnp.tanh(candidate + candidate_recurrent * c)
        c = f * c + (1 - f) * z
        o = jax.nn.sigmoid(jnp.concatenate([x, c, one]) @ params["output"])
        return c, o * c

    return Cell(init, lambda: jnp.zeros(hidden_size), step)
