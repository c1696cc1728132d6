"""Independent columns of small LSTMs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import gaussian


def lstm_columns(
    *,
    input_size: int,
    num_columns: int,
    column_size: int = 1,
    init_scale: float = 0.0,
    forget_bias: float = 1.0,
) -> Cell:
    """Columns that all read x but not each other, each a small LSTM.

    The columnar network of Javed, Shah, Sutton and White (2023, arXiv:2302.05326), whose columns have
    one unit each; its normalization of features and its growth in stages are left out. In each column
    [i; f; g; o] = W^T x + R^T h + b, c' = sigmoid(f) * c + sigmoid(i) * tanh(g) and
    h' = sigmoid(o) * tanh(c').

    J is block-diagonal, with a block of 2 column_size variables for each column:
    `diagonal_rtrl(unit_size=2 * column_size)` is exact, with that many numbers per weight. `snap` of
    order 2 or more is the same.

    Args:
      input_size: length of x.
      num_columns: the number of columns.
      column_size: the number of units in each. The carry is (c, h), each [num_columns, column_size], so
        that n is 2 num_columns column_size. The output is all of h in one vector.
      init_scale: standard deviation of W, R and b; 0 means (input_size + column_size + 1)^-1/2.
      forget_bias: added to the initial bias of f.

    Raises:
      ValueError: if num_columns or column_size is less than 1.
    """
    bounds.require("[1, inf)", num_columns=num_columns, column_size=column_size)
    rows = input_size + column_size + 1

    def init(key: Key) -> dict[str, Array]:
        weights = gaussian(key, (rows, num_columns * 4 * column_size), init_scale)
        weights = weights.reshape(rows, num_columns, 4 * column_size)
        return {
            "input": weights[:input_size].reshape(input_size, -1),
            "recurrent": weights[input_size:-1].swapaxes(0, 1),
            "bias": weights[-1].at[:, column_size : 2 * column_size].add(forget_bias),
        }

    def initial_carry() -> tuple[Array, Array]:
        zeros = jnp.zeros((num_columns, column_size))
        return zeros, zeros

    def step(
        params: dict[str, Array], carry: tuple[Array, Array], x: Array
    ) -> tuple[tuple[Array, Array], Array]:
        c, h = carry
        driven = (x @ params["input"]).reshape(num_columns, -1)
        recurrent = jnp.einsum("ki,kij->kj", h, params["recurrent"])
        i, f, g, o = jnp.split(driven + recurrent + params["bias"], 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h.reshape(-1)

    return Cell(init, initial_carry, step)
