"""The weights of a site that no mask fixes to zero, for states with a number for every weight.

Heads make a block-diagonal matrix, whose zeros would be most of RTRL's influence matrix: m is the
number of all inputs, and each column reads those of its own head. Fixed sparse matrices are the same
case. So column by column only the weights that exist are kept, [f, g] in place of [m, g], f being the
most that a column has.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Array, Mask, Structure
from kfrtrl_jax._src.estimators.common import norm_of_outer_sum
from kfrtrl_jax._src.estimators.on_pattern import padded
from kfrtrl_jax._src.matrices import take
from kfrtrl_jax._src.xla import norm, outer_sum


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Weights:
    """The existing weights of a site; in a state it is static.

    Attributes:
      input_size: m.
      output_size: g.
      mask: which exist, [m, g]; None for all of them.
    """

    input_size: int
    output_size: int
    mask: Mask | None = None

    @functools.cached_property
    def reads(self) -> np.ndarray | None:
        """The inputs that each column has weights for, [f, g], -1 for none; None if f is m."""
        if self.mask is None:
            return None
        reads = padded(self.mask.array.T).T
        return None if len(reads) == self.input_size else reads

    @property
    def shape(self) -> tuple[int, int]:
        """(f, g), and (m, g) if all exist."""
        return (self.input_size if self.reads is None else len(self.reads), self.output_size)

    def outer_sum(self, inputs: Array, parts: Array) -> Array:
        """sum_t a_t part_t^T at the existing weights, [B, f, g], for [B, T, m] and [B, T, g]."""
        if self.reads is None:
            return outer_sum(inputs, parts)
        return jnp.einsum("btfg,btg->bfg", self._read(inputs), parts)

    def norm_of_outer_sum(self, inputs: Array, parts: Array) -> Array:
        """Its norm, [B]."""
        if self.reads is None:
            return norm_of_outer_sum(inputs, parts)
        return norm(self.outer_sum(inputs, parts))

    def times_inputs(self, inputs: Array, values: Array) -> Array:
        """V^T a_t, [B, T, g, k], for k matrices of weights, [B, k, f, g]."""
        if self.reads is None:
            return jnp.einsum("btm,bkmg->btgk", inputs, values)
        return jnp.einsum("btfg,bkfg->btgk", self._read(inputs), values)

    def everywhere(self, values: Array) -> Array:
        """[m, g], 0 where there are no weights, from values of those that exist, [f, g]."""
        if (reads := self.reads) is None:
            return values
        spread = jnp.zeros((self.input_size, self.output_size), values.dtype)
        # Past the end nothing is written.
        places = np.where(reads >= 0, reads, self.input_size)
        return spread.at[places, np.arange(self.output_size)].set(values, mode="drop")

    def existing(self, gradient: Array) -> Array:
        """The gradient, [m, g], 0 where there are no weights: no parameter sees what stands there."""
        return gradient if self.mask is None else jnp.where(self.mask.array, gradient, 0)

    def _read(self, inputs: Array) -> Array:
        """What the weights read, [B, T, f, g], 0 where there is none."""
        assert self.reads is not None
        reads = take(inputs, self.reads.reshape(-1), axis=-1)
        return reads.reshape(*inputs.shape[:-1], *self.shape)


def weights_of(structure: Structure) -> tuple[Weights, ...]:
    """The existing weights of every site."""
    return tuple(
        Weights(site.input_size, site.output_size, site.weights_mask) for site in structure.sites
    )
