"""The continuous-time recurrent network."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import StaticFloat, gaussian


def ctrnn(
    *,
    input_size: int,
    hidden_size: int,
    time_constant: StaticFloat = 2.0,
    learned_time_constants: bool = False,
    step_size: StaticFloat = 1.0,
    num_steps: int = 1,
    init_scale: float = 0.0,
) -> Cell:
    """A continuous-time recurrent network, by Euler steps (Funahashi and Nakamura, 1993).

    tau dh/dt = -h + tanh(W^T [x; h; 1]), with x held over a time step. Each of num_steps Euler steps
    maps h to h + (step_size / tau) * (-h + tanh(W^T [x; h; 1])).

    Args:
      input_size: length of x.
      hidden_size: n, length of h, which is both carry and output.
      time_constant: tau, at first if it is learned; in the unit of step_size.
      learned_time_constants: whether each unit has a tau of its own, a parameter by its logarithm.
      step_size: the duration of an Euler step, at most time_constant.
      num_steps: Euler steps in a time step; all of them use the same weights.
      init_scale: standard deviation of W; 0 means (input_size + n + 1)^-1/2.

    Raises:
      ValueError: if not 0 < step_size <= time_constant, or num_steps is less than 1.
    """
    if not 0 < step_size <= time_constant:
        raise ValueError(
            f"step_size must be more than 0 and at most time_constant={time_constant}, got {step_size}"
        )
    bounds.require("[1, inf)", num_steps=num_steps)

    def init(key: Key) -> dict[str, Array]:
        rows = gaussian(key, (input_size + hidden_size + 1, hidden_size), init_scale)
        params = {
            "input": rows[:input_size],
            "recurrent": rows[input_size:-1],
            "bias": rows[-1],
        }
        if learned_time_constants:
            params["log_tau"] = jnp.full(hidden_size, jnp.log(time_constant))
        return params

    def step(params: dict[str, Array], h: Array, x: Array) -> tuple[Array, Array]:
        driven = x @ params["input"] + params["bias"]
        tau = jnp.exp(params["log_tau"]) if learned_time_constants else time_constant

        def euler(_: int, h: Array) -> Array:
            return h + step_size / tau * (jnp.tanh(driven + h @ params["recurrent"]) - h)

        h = jax.lax.fori_loop(0, num_steps, euler, h)
        return h, h

    return Cell(init, lambda: jnp.zeros(hidden_size), step)
