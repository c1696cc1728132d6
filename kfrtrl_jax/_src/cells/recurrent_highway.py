"""Recurrent highway networks."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import RecurrentMasks, StaticFloat, gaussian, masked


def recurrent_highway(
    *,
    input_size: int,
    hidden_size: int,
    depth: int = 1,
    candidate: Literal["scaled_sigmoid", "tanh"] = "scaled_sigmoid",
    init_scale: float = 0.01,
    sparsity: StaticFloat = 0.0,
    mask_seed: int = 0,
) -> Cell:
    """A recurrent highway network with coupled gates (Zilly et al., 2017, arXiv:1607.03474).

    Each of its `depth` layers maps the state s to f * s + (1 - f) * c, with [c~; f~] = W^T [x; s; 1] in
    the first layer and W^T [s; 1] in the others, and f = sigmoid(f~). Here f is the carry gate; the
    paper's transform gate is 1 - f.

    Args:
      input_size: length of x.
      hidden_size: n, length of s, which is both carry and output.
      depth: the number of layers per time step.
      candidate: "tanh" is the paper's c = tanh(c~); "scaled_sigmoid" is c = 2 sigmoid(c~) - 1, as in
        the public experiments with KF-RTRL and OK.
      init_scale: standard deviation of W; 0 means one over the square root of its number of unmasked
        rows.
      sparsity: the fraction of the weights of s, in every layer, that random masks fix at 0.
      mask_seed: of these masks, independent of the run's seed.

    Raises:
      ValueError: if depth is less than 1, candidate is unknown or sparsity is not in [0, 1).
    """
    bounds.require("[1, inf)", depth=depth)
    if candidate not in ("scaled_sigmoid", "tanh"):
        raise ValueError(f'candidate must be "scaled_sigmoid" or "tanh", got {candidate!r}')

    draw = RecurrentMasks(sparsity, mask_seed)
    rows = [input_size + hidden_size + 1] + [hidden_size + 1] * (depth - 1)
    masks = [draw(m, 2 * hidden_size, first=m - 1 - hidden_size) for m in rows]

    def init(key: Key) -> list[Array]:
        keys = jax.random.split(key, depth)
        return [
            gaussian(k, (m, 2 * hidden_size), init_scale, mask)
            for k, m, mask in zip(keys, rows, masks)
        ]

    def step(params: list[Array], s: Array, x: Array) -> tuple[Array, Array]:
        for layer, weights in enumerate(params):
            inputs = [x, s] if layer == 0 else [s]
            pre_activation = jnp.concatenate([*inputs, jnp.ones(1, s.dtype)]) @ masked(
                weights, masks[layer]
            )
            new, gate = jnp.split(pre_activation, 2)
            c = jnp.tanh(new) if candidate == "tanh" else 2 * jax.nn.sigmoid(new) - 1
            f = jax.nn.sigmoid(gate)
            s = f * s + (1 - f) * c
        return s, s

    return Cell(init, lambda: jnp.zeros(hidden_size), step)
