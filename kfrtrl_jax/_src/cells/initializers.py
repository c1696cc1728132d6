"""The initial weights of cells, and their random sparsity masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src import bounds, jax_internals
from kfrtrl_jax._src.base import Array, Key
from kfrtrl_jax._src.host_memory import require_memory

# A number that must be known when a cell is built, such as a sparsity: a sweep may trace float fields.
StaticFloat = float | int


def gaussian(
    key: Key, shape: tuple[int, int], scale: float, mask: np.ndarray | None = None
) -> Array:
    """Weights [m, g] from N(0, scale^2), where scale 0 stands for m^-1/2.

    With a mask [m, g], weights outside it are 0 and m is the mean number of weights kept per column.
    """
    rows = shape[0] if mask is None else float(mask.sum()) / shape[1]
    deviation = jnp.where(jnp.asarray(scale) == 0, rows**-0.5, scale)
    return masked(deviation * jax.random.normal(key, shape), mask)


def masked(weights: Array, mask: np.ndarray | None) -> Array:
    """The weights, 0 outside the mask if there is one."""
    return weights if mask is None else weights * mask.astype(weights.dtype)


def ring(
    radius_key: Key,
    phase_key: Key,
    size: int,
    min_radius: float,
    max_radius: float,
    max_phase: float,
) -> tuple[Array, Array]:
    """(nu, theta), [size] each, of eigenvalues exp(-exp(nu) + i exp(theta)), uniform over a ring.

    It lies between two radii and the arguments 0 and max_phase (Orvieto et al., 2023,
    arXiv:2303.06349).
    """
    tiny = jnp.finfo(jnp.zeros(()).dtype).eps
    # Kept away from the radii 0 and 1, where nu is infinite.
    squared = jax.random.uniform(radius_key, (size,), None, min_radius**2, max_radius**2)
    squared = jnp.clip(squared, tiny, 1 - tiny)
    phase = jax.random.uniform(phase_key, (size,), None, tiny, max_phase)
    return jnp.log(-0.5 * jnp.log(squared)), jnp.log(phase)


def complex_zeros(size: int, as_one: bool) -> Array | tuple[Array, Array]:
    """A complex state of zeros: one complex vector, or its real and imaginary parts."""
    zeros = jnp.zeros(size)
    return jax.lax.complex(zeros, zeros) if as_one else (zeros, zeros)


def require_ring(min_radius: float, max_radius: float, max_phase: float) -> None:
    """Refuses what `ring` cannot draw from; a sweep's traced numbers are not checked.

    Raises:
      ValueError: if not 0 <= min_radius < max_radius <= 1, or max_phase is not positive.
    """
    if any(map(jax_internals.is_traced, (min_radius, max_radius, max_phase))):
        return
    if not 0 <= min_radius < max_radius <= 1:
        raise ValueError(
            f"the radii must be 0 <= min_radius < max_radius <= 1, got {min_radius} and {max_radius}"
        )
    bounds.require("(0, inf)", max_phase=max_phase)


class RecurrentMasks:
    """Draws random masks of the recurrent weights to keep (Menick et al., 2021, arXiv:2006.07232).

    Raises:
      ValueError: if sparsity is not in [0, 1).
    """

    def __init__(self, sparsity: StaticFloat, seed: int):
        bounds.require("[0, 1)", sparsity=sparsity)
        self._kept = 1 - sparsity
        self._random = np.random.default_rng(seed)

    def __call__(self, rows: int, columns: int, first: int) -> np.ndarray | None:
        """A mask [rows, columns] that is sparse in rows first to rows - 2; None without sparsity.

        The other rows are full; the last one holds the biases. The kept recurrent weights are at random
        places, spread over the columns as evenly as their number allows.
        """
        if self._kept == 1:
            return None
        recurrent = rows - 1 - first
        require_memory(f"a mask of {recurrent} x {columns} weights", 18 * recurrent * columns)
        each, extra = divmod(round(self._kept * recurrent * columns), columns)
        counts = np.full(columns, each)
        counts[self._random.permutation(columns)[:extra]] += 1
        places = self._random.permuted(np.tile(np.arange(recurrent), (columns, 1)), axis=1)
        mask = np.ones((rows, columns), bool)
        mask[first : rows - 1] = counts > places.T
        return mask
