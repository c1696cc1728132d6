"""The liquid time-constant network."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import StaticFloat, gaussian


def ltc(
    *,
    input_size: int,
    hidden_size: int,
    duration: StaticFloat = 1.0,
    num_steps: int = 6,
    init_scale: float = 0.0,
) -> Cell:
    """A liquid time-constant network with its fused solver (Hasani et al., 2021, arXiv:2006.04439).

    dh/dt = -(1 / tau + f) * h + f * A, with f = sigmoid(W^T [x; h; 1]) and x held over a time step: the
    time constant tau / (1 + tau f) depends on input and state. Each of num_steps steps of length
    d = duration / num_steps maps h to (h + d * f * A) / (1 + d * (1 / tau + f)), the paper's Euler step
    that is implicit in h where h enters linearly. The paper leaves f open; with values in (0, 1), as
    here, the denominator is more than 1. The parameters are W, A and log tau.

    Args:
      input_size: length of x.
      hidden_size: n, length of h, which is both carry and output.
      duration: of a time step; tau, initially 1, is in the same unit.
      num_steps: steps of the solver in a time step; all of them use the same weights.
      init_scale: standard deviation of W; 0 means (input_size + n + 1)^-1/2. That of A is 1.

    Raises:
      ValueError: if duration is not positive, or num_steps is less than 1.
    """
    bounds.require("(0, inf)", duration=duration)
    bounds.require("[1, inf)", num_steps=num_steps)
    d = duration / num_steps

    def init(key: Key) -> dict[str, Array]:
        weights_key, reversal_key = jax.random.split(key)
        rows = gaussian(weights_key, (input_size + hidden_size + 1, hidden_size), init_scale)
        return {
            "input": rows[:input_size],
            "recurrent": rows[input_size:-1],
            "bias": rows[-1],
            "reversal": jax.random.normal(reversal_key, (hidden_size,)),
            "log_tau": jnp.zeros(hidden_size),
        }

    def step(params: dict[str, Array], h: Array, x: Array) -> tuple[Array, Array]:
        driven = x @ params["input"] + params["bias"]
        leak = jnp.exp(-params["log_tau"])

        def fused(_: int, h: Array) -> Array:
            f = jax.nn.sigmoid(driven + h @ params["recurrent"])
            return (h + d * params["reversal"] * f) / (1 + d * (leak + f))

        h = jax.lax.fori_loop(0, num_steps, fused, h)
        return h, h

    return Cell(init, lambda: jnp.zeros(hidden_size), step)
