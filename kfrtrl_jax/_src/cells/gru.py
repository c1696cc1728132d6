"""The gated recurrent unit."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import RecurrentMasks, StaticFloat, gaussian, masked


def gru(
    *,
    input_size: int,
    hidden_size: int,
    init_scale: float = 0.0,
    sparsity: StaticFloat = 0.0,
    mask_seed: int = 0,
) -> Cell:
    """A GRU that applies its reset gate after the recurrent product, element-wise.

    [r; z] = sigmoid(W^T [x; h; 1]), c = tanh(U^T [x; 1] + r * V^T [h; 1]), h' = z * h + (1 - z) * c
    (Cho et al., 2014, arXiv:1406.1078, in the form of version 1 and of cuDNN).

    Args:
      input_size: length of x.
      hidden_size: n, length of h, which is both carry and output.
      init_scale: standard deviation of W, U and V; 0 means one over the square root of the number of
        unmasked rows of each.
      sparsity: the fraction of the weights of h, in W and V, that random masks fix at 0.
      mask_seed: of these masks, independent of the run's seed.

    Raises:
      ValueError: if sparsity is not in [0, 1).
    """
    draw = RecurrentMasks(sparsity, mask_seed)
    rows = input_size + hidden_size + 1
    gates_mask = draw(rows, 2 * hidden_size, first=input_size)
    candidate_mask = draw(hidden_size + 1, hidden_size, first=0)

    def init(key: Key) -> dict[str, Array]:
        gates, inputs, recurrent = jax.random.split(key, 3)
        return {
            "gates": gaussian(gates, (rows, 2 * hidden_size), init_scale, gates_mask),
            "candidate_input": gaussian(inputs, (input_size + 1, hidden_size), init_scale),
            "candidate_recurrent": gaussian(
                recurrent, (hidden_size + 1, hidden_size), init_scale, candidate_mask
            ),
        }

    def step(params: dict[str, Array], h: Array, x: Array) -> tuple[Array, Array]:
        one = jnp.ones(1, h.dtype)
        gate_weights = masked(params["gates"], gates_mask)
        gates = jax.nn.sigmoid(jnp.concatenate([x, h, one]) @ gate_weights)
        r, z = jnp.split(gates, 2)
        candidate_weights = masked(params["candidate_recurrent"], candidate_mask)
        recurrent = jnp.concatenate([h, one]) @ candidate_weights
        c = jnp.tanh(jnp.concatenate([x, one]) @ params["candidate_input"] + r * recurrent)
        h = z * h + (1 - z) * c
        return h, h

    return Cell(init, lambda: jnp.zeros(hidden_size), step)
