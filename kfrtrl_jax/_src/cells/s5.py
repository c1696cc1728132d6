"""The S5 layer."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import complex_zeros, gaussian
from kfrtrl_jax._src.host_memory import require_memory


def s5(
    *,
    input_size: int,
    hidden_size: int,
    min_step: float = 0.001,
    max_step: float = 0.1,
    complex_state: bool = False,
) -> Cell:
    """A diagonal state space layer (Smith, Warrington and Linderman, 2023, arXiv:2208.04933).

    dz/dt = lambda * z + B^T x with complex lambda, B and z, and Re(lambda) = -exp(log decay) < 0. Each
    unit holds x over a step of its own learned length d (zero-order hold):

        z' = exp(d lambda) * z + ((exp(d lambda) - 1) / lambda * B)^T x

    The output is 2 Re(C^T z') + D^T x, as each unit stands for itself and its complex conjugate; D is a
    matrix here, as x and the output may differ in length. Initially lambda are the eigenvalues of the
    HiPPO-N matrix that have positive imaginary parts, and B and C are normal in its basis. Complex
    parameters are kept by their parts. Units do not see each other: `diagonal_rtrl` is exact.

    Args:
      input_size: length of x.
      hidden_size: the number of complex units, so that n is twice this, and the length of the output.
      min_step: initially d is drawn between this and max_step, uniformly in its logarithm.
      max_step: see min_step.
      complex_state: whether the carry is the complex vector z, instead of (Re z, Im z). The parameters
        and all values are the same.

    Raises:
      ValueError: if not 0 < min_step <= max_step.
    """
    steps = (min_step, max_step)
    if not any(map(jax_internals.is_traced, steps)) and not 0 < min_step <= max_step:
        raise ValueError(
            f"the steps must be 0 < min_step <= max_step, got {min_step} and {max_step}"
        )

    def init(key: Key) -> dict[str, Array]:
        step_key, input_key, output_key, skip_key = jax.random.split(key, 4)
        eigenvalues, basis = map(jnp.asarray, _hippo_normal(2 * hidden_size))
        inputs = basis.conj().T @ gaussian(input_key, (2 * hidden_size, input_size), 0.0)
        outputs = gaussian(output_key, (2 * hidden_size, hidden_size), 0.0).T @ basis
        low, high = jnp.log(min_step), jnp.log(max_step)
        return {
            "log_decay": jnp.log(-eigenvalues.real),
            "frequency": eigenvalues.imag,
            "log_step": jax.random.uniform(step_key, (hidden_size,), None, low, high),
            "input_real": inputs.real.T,
            "input_imaginary": inputs.imag.T,
            "output_real": outputs.real.T,
            "output_imaginary": outputs.imag.T,
            "skip": gaussian(skip_key, (input_size, hidden_size), 0.0),
        }

    def step(
        params: dict[str, Array], carry: Array | tuple[Array, Array], x: Array
    ) -> tuple[Array | tuple[Array, Array], Array]:
        eigenvalues = jax.lax.complex(-jnp.exp(params["log_decay"]), params["frequency"])
        factors = jnp.exp(jnp.exp(params["log_step"]) * eigenvalues)
        inputs = jax.lax.complex(params["input_real"], params["input_imaginary"])
        inputs = (factors - 1) / eigenvalues * inputs
        if isinstance(carry, tuple):
            real, imaginary = carry
            carry = real, imaginary = (
                factors.real * real + -factors.imag * imaginary + x @ inputs.real,
                factors.imag * real + factors.real * imaginary + x @ inputs.imag,
            )
        else:
            carry = factors * carry + x @ inputs
            real, imaginary = carry.real, carry.imag
        output = real @ (2 * params["output_real"]) + imaginary @ (-2 * params["output_imaginary"])
        return carry, output + x @ params["skip"]

    return Cell(init, lambda: complex_zeros(hidden_size, complex_state), step)


@functools.lru_cache
def _hippo_normal(size: int) -> tuple[np.ndarray, np.ndarray]:
    """HiPPO-N's eigenvalues with positive imaginary parts, [size / 2], and eigenvectors, in columns.

    HiPPO-N is -1/2 plus a skew-symmetric matrix.
    """
    # The matrix, its complex form, and the eigenvectors beside the solver's own copy.
    require_memory(f"the HiPPO matrix of {size} states", 64 * size**2)
    roots = np.sqrt(2 * np.arange(size) + 1)
    above = np.triu(np.outer(roots, roots) / 2, 1)
    frequencies, vectors = np.linalg.eigh(-1j * (above - above.T))
    positive = frequencies > 0
    return -0.5 + 1j * frequencies[positive], vectors[:, positive]
