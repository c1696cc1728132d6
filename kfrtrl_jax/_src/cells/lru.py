"""The linear recurrent unit."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax._src.base import Array, Cell, Key


def lru(
    *,
    input_size: int,
    hidden_size: int,
    min_radius: float = 0.0,
    max_radius: float = 1.0,
    max_phase: float = 2 * math.pi,
) -> Cell:
    """A diagonal linear recurrence of complex numbers (Orvieto et al., 2023, arXiv:2303.06349).

    z' = lambda * z + gamma * B^T x with lambda = exp(-exp(nu) + i exp(theta)), so that |lambda| < 1, in
    real and imaginary parts. The parameters are nu, theta, log gamma and B; initially gamma^2 =
    1 - |lambda|^2. The carry is (Re z, Im z). The output is both in one vector of length 2 hidden_size,
    so that a linear readout is the paper's Re(C z) with any complex C. The paper's feedthrough of x is
    left out.

    Args:
      input_size: length of x.
      hidden_size: the number of complex units, so that n is twice this.
      min_radius: initially |lambda| is drawn between this and max_radius, uniformly over the ring.
      max_radius: see min_radius; at most 1.
      max_phase: initially the argument of lambda is drawn between 0 and this.

    Raises:
      ValueError: if not 0 <= min_radius < max_radius <= 1, or max_phase is not positive.
    """
    _check(min_radius, max_radius, max_phase)

    def init(key: Key) -> dict[str, Array]:
        radius_key, phase_key, real_key, imaginary_key = jax.random.split(key, 4)
        shape, tiny = (hidden_size,), jnp.finfo(jnp.zeros(()).dtype).eps
        # Kept away from |lambda| = 0 and 1, where nu is infinite.
        squared = jax.random.uniform(radius_key, shape, None, min_radius**2, max_radius**2)
        squared = jnp.clip(squared, tiny, 1 - tiny)
        phase = jax.random.uniform(phase_key, shape, None, tiny, max_phase)
        scale = (2 * input_size) ** -0.5
        return {
            "nu": jnp.log(-0.5 * jnp.log(squared)),
            "theta": jnp.log(phase),
            "log_gamma": 0.5 * jnp.log(1 - squared),
            "real": scale * jax.random.normal(real_key, (input_size, hidden_size)),
            "imaginary": scale * jax.random.normal(imaginary_key, (input_size, hidden_size)),
        }

    def initial_carry() -> tuple[Array, Array]:
        zeros = jnp.zeros(hidden_size, jax.dtypes.canonicalize_dtype(float))
        return zeros, zeros

    def step(
        params: dict[str, Array], carry: tuple[Array, Array], x: Array
    ) -> tuple[tuple[Array, Array], Array]:
        real, imaginary = carry
        size, phase = jnp.exp(-jnp.exp(params["nu"])), jnp.exp(params["theta"])
        cos, sin = size * jnp.cos(phase), size * jnp.sin(phase)
        # With the parameters multiplied first, each part is one sum of products with data.
        gamma = jnp.exp(params["log_gamma"])
        new_real = cos * real + -sin * imaginary + x @ (gamma * params["real"])
        new_imaginary = sin * real + cos * imaginary + x @ (gamma * params["imaginary"])
        return (new_real, new_imaginary), jnp.concatenate([new_real, new_imaginary])

    return Cell(init, initial_carry, step)


def _check(min_radius: float, max_radius: float, max_phase: float) -> None:
    values = (min_radius, max_radius, max_phase)
    if any(map(jax_internals.is_traced, values)):
        return
    if not 0 <= min_radius < max_radius <= 1:
        raise ValueError(
            f"the radii must be 0 <= min_radius < max_radius <= 1, got {min_radius} and {max_radius}"
        )
    if not max_phase > 0:
        raise ValueError(f"max_phase must be more than 0, got {max_phase}")
