"""The tanh recurrent network."""

from __future__ import annotations

import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import RecurrentMasks, StaticFloat, gaussian, masked


def vanilla(
    *,
    input_size: int,
    hidden_size: int,
    init_scale: float = 0.0,
    sparsity: StaticFloat = 0.0,
    mask_seed: int = 0,
) -> Cell:
    """h' = tanh(W^T [x; h; 1]) (Elman, 1990).

    Args:
      input_size: length of x.
      hidden_size: n, length of h, which is both carry and output.
      init_scale: standard deviation of W; 0 means one over the square root of the number of weights of
        a unit, which is (input_size + n + 1)^-1/2 without a mask.
      sparsity: the fraction of the weights of h that a random mask fixes at 0.
      mask_seed: of that mask, independent of the run's seed.

    Raises:
      ValueError: if sparsity is not in [0, 1).
    """
    rows = input_size + hidden_size + 1
    mask = RecurrentMasks(sparsity, mask_seed)(rows, hidden_size, first=input_size)

    def init(key: Key) -> dict[str, Array]:
        return {"weights": gaussian(key, (rows, hidden_size), init_scale, mask)}

    def step(params: dict[str, Array], h: Array, x: Array) -> tuple[Array, Array]:
        weights = masked(params["weights"], mask)
        h = jnp.tanh(jnp.concatenate([x, h, jnp.ones(1, h.dtype)]) @ weights)
        return h, h

    return Cell(init, lambda: jnp.zeros(hidden_size), step)
