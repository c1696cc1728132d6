"""The initial weights of cells, and their random sparsity masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Array, Key

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


class RecurrentMasks:
    """Draws random masks of the recurrent weights to keep (Menick et al., 2021, arXiv:2006.07232).

    Raises:
      ValueError: if sparsity is not in [0, 1).
    """

    def __init__(self, sparsity: StaticFloat, seed: int):
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
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
        each, extra = divmod(round(self._kept * recurrent * columns), columns)
        counts = np.full(columns, each)
        counts[self._random.permutation(columns)[:extra]] += 1
        places = self._random.permuted(np.tile(np.arange(recurrent), (columns, 1)), axis=1)
        mask = np.ones((rows, columns), bool)
        mask[first : rows - 1] = counts > places.T
        return mask
