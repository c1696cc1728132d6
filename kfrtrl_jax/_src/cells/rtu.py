"""Recurrent trace units."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import gaussian, require_ring, ring


def rtu(
    *,
    input_size: int,
    hidden_size: int,
    activation: Literal["linear", "tanh", "relu"] = "linear",
    min_radius: float = 0.0,
    max_radius: float = 1.0,
    max_phase: float = 2 * math.pi,
) -> Cell:
    """Recurrent trace units (Elelimy, White, Bowling and White, 2024, arXiv:2409.01449).

    A unit has two variables, turned by an angle and shrunk in every step:

        a' = f(r cos(phi) * a - r sin(phi) * b + gamma * V^T x)
        b' = f(r sin(phi) * a + r cos(phi) * b + gamma * W^T x)

    with r = exp(-exp(nu)) < 1, phi = exp(theta) and gamma = sqrt(1 - r^2). The parameters are nu,
    theta, V and W, the carry is (a, b). The paper's linear units have f(z) = z and the output
    relu([a'; b']), its nonlinear ones another f and the output [a'; b']. Units do not see each other:
    `diagonal_rtrl` is exact.

    Args:
      input_size: length of x.
      hidden_size: the number of units, so that n and the length of the output are twice this.
      activation: f.
      min_radius: initially r is drawn between this and max_radius, uniformly over the ring.
      max_radius: see min_radius; at most 1.
      max_phase: initially phi is drawn between 0 and this.

    Raises:
      ValueError: if activation is unknown, not 0 <= min_radius < max_radius <= 1, or max_phase is not
        positive.
    """
    functions = {"linear": lambda z: z, "tanh": jnp.tanh, "relu": jax.nn.relu}
    if activation not in functions:
        raise ValueError(f'activation must be "linear", "tanh" or "relu", got {activation!r}')
    require_ring(min_radius, max_radius, max_phase)
    f = functions[activation]

    def init(key: Key) -> dict[str, Array]:
        radius_key, phase_key, first_key, second_key = jax.random.split(key, 4)
        nu, theta = ring(radius_key, phase_key, hidden_size, min_radius, max_radius, max_phase)
        shape = (input_size, hidden_size)
        return {
            "nu": nu,
            "theta": theta,
            "first": gaussian(first_key, shape, 0.0),
            "second": gaussian(second_key, shape, 0.0),
        }

    def initial_carry() -> tuple[Array, Array]:
        zeros = jnp.zeros(hidden_size)
        return zeros, zeros

    def step(
        params: dict[str, Array], carry: tuple[Array, Array], x: Array
    ) -> tuple[tuple[Array, Array], Array]:
        a, b = carry
        decay, phase = jnp.exp(params["nu"]), jnp.exp(params["theta"])
        cos, sin = jnp.exp(-decay) * jnp.cos(phase), jnp.exp(-decay) * jnp.sin(phase)
        gamma = jnp.sqrt(-jnp.expm1(-2 * decay))  # exact for r close to 1
        a, b = (
            f(cos * a + -sin * b + x @ (gamma * params["first"])),
            f(sin * a + cos * b + x @ (gamma * params["second"])),
        )
        output = jnp.concatenate([a, b])
        return (a, b), jax.nn.relu(output) if activation == "linear" else output

    return Cell(init, initial_carry, step)
