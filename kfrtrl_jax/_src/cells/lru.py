"""The linear recurrent unit."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import complex_zeros, require_ring, ring


def lru(
    *,
    input_size: int,
    hidden_size: int,
    min_radius: float = 0.0,
    max_radius: float = 1.0,
    max_phase: float = 2 * math.pi,
    complex_state: bool = False,
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
      complex_state: whether the carry is the complex vector z, instead of (Re z, Im z). The parameters
        and all values are the same.

    Raises:
      ValueError: if not 0 <= min_radius < max_radius <= 1, or max_phase is not positive.
    """
    require_ring(min_radius, max_radius, max_phase)

    def init(key: Key) -> dict[str, Array]:
        radius_key, phase_key, real_key, imaginary_key = jax.random.split(key, 4)
        nu, theta = ring(radius_key, phase_key, hidden_size, min_radius, max_radius, max_phase)
        scale = (2 * input_size) ** -0.5
        return {
            "nu": nu,
            "theta": theta,
            "log_gamma": 0.5 * jnp.log(-jnp.expm1(-2 * jnp.exp(nu))),
            "real": scale * jax.random.normal(real_key, (input_size, hidden_size)),
            "imaginary": scale * jax.random.normal(imaginary_key, (input_size, hidden_size)),
        }

    def step(
        params: dict[str, Array], carry: Array | tuple[Array, Array], x: Array
    ) -> tuple[Array | tuple[Array, Array], Array]:
        size, phase = jnp.exp(-jnp.exp(params["nu"])), jnp.exp(params["theta"])
        cos, sin = size * jnp.cos(phase), size * jnp.sin(phase)
        # With the parameters multiplied first, each part is one sum of products with data.
        gamma = jnp.exp(params["log_gamma"])
        into_real, into_imaginary = gamma * params["real"], gamma * params["imaginary"]
        if isinstance(carry, tuple):
            real, imaginary = carry
            carry = real, imaginary = (
                cos * real + -sin * imaginary + x @ into_real,
                sin * real + cos * imaginary + x @ into_imaginary,
            )
        else:
            eigenvalues, inputs = map(jax.lax.complex, (cos, into_real), (sin, into_imaginary))
            carry = eigenvalues * carry + x @ inputs
            real, imaginary = carry.real, carry.imag
        return carry, jnp.concatenate([real, imaginary])

    return Cell(init, lambda: complex_zeros(hidden_size, complex_state), step)
