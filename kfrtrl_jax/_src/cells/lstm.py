"""The long short-term memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import RecurrentMasks, StaticFloat, gaussian, masked


def lstm(
    *,
    input_size: int,
    hidden_size: int,
    init_scale: float = 0.0,
    forget_bias: float = 1.0,
    sparsity: StaticFloat = 0.0,
    mask_seed: int = 0,
) -> Cell:
    """An LSTM without peepholes (Hochreiter and Schmidhuber, 1997; Gers et al., 2000).

    [i; f; g; o] = W^T [x; h; 1], c' = sigmoid(f) * c + sigmoid(i) * tanh(g),
    h' = sigmoid(o) * tanh(c'). The carry is (c, h), the output h.

    Args:
      input_size: length of x.
      hidden_size: length of c and of h, so that n is twice this.
      init_scale: standard deviation of W; 0 means one over the square root of the number of weights of
        a gate, which is (input_size + hidden_size + 1)^-1/2 without a mask.
      forget_bias: added to the initial bias of f.
      sparsity: the fraction of the weights of h that a random mask fixes at 0.
      mask_seed: of that mask, independent of the run's seed.

    Raises:
      ValueError: if sparsity is not in [0, 1).
    """
    rows = input_size + hidden_size + 1
    mask = RecurrentMasks(sparsity, mask_seed)(rows, 4 * hidden_size, first=input_size)

    def init(key: Key) -> dict[str, Array]:
        weights = gaussian(key, (rows, 4 * hidden_size), init_scale, mask)
        return {"weights": weights.at[-1, hidden_size : 2 * hidden_size].add(forget_bias)}

    def initial_carry() -> tuple[Array, Array]:
        zeros = jnp.zeros(hidden_size)
        return zeros, zeros

    def step(
        params: dict[str, Array], carry: tuple[Array, Array], x: Array
    ) -> tuple[tuple[Array, Array], Array]:
        c, h = carry
        weights = masked(params["weights"], mask)
        gates = jnp.concatenate([x, h, jnp.ones(1, h.dtype)]) @ weights
        i, f, g, o = jnp.split(gates, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    return Cell(init, initial_carry, step)
