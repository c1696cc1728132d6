"""Bits per character on held-out text, with the state carried from the first character to the last."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kfrtrl_jax._src.lanes import initial_lanes
from kfrtrl_jax._src.shapes import require_shape
from kfrtrl_jax.base import Array, Cell
from kfrtrl_jax.learning import predict
from kfrtrl_jax.readouts import Readout


def losses(
    cell: Cell,
    readout: Readout,
    parameters: dict[str, Any],
    tokens: Array,
    *,
    lanes: int = 1,
    warm_up: int = 200,
) -> Array:
    """The losses of all characters but the first, each predicted exactly once.

    The text is cut into contiguous stretches, one per lane, which are read in parallel. A lane first
    reads the `warm_up` characters before its stretch, whose losses do not count. One lane is the exact
    protocol: the whole text in order.

    Args:
      cell: a cell that reads tokens.
      readout: from its output to logits.
      parameters: {"cell": ..., "readout": ...}.
      tokens: [N].
      lanes: at most N - 1 are used.
      warm_up: characters that a lane reads before its stretch.

    Returns:
      [T], in bits, summed over the lanes that read at the same time; the sum is over N - 1 characters.

    Raises:
      ValueError: if tokens does not have exactly one axis.
    """
    require_shape("tokens", tokens, "N")
    count = tokens.shape[0] - 1
    lanes = min(lanes, count)
    stretch = -(-count // lanes)
    warm_up = warm_up if lanes > 1 else 0
    starts = stretch * jnp.arange(lanes)
    initial = initial_lanes(cell, lanes)

    def step(carry: Any, time: Array) -> tuple[Any, Array]:
        positions = starts + time
        here = jnp.clip(positions, 0, count - 1)
        new, logits = jax.vmap(lambda c, x: predict(cell, readout, parameters, c, x))(
            carry, tokens[here]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[here + 1])
        counted = (time >= 0) & (positions < count)
        # Before the start of the text there is nothing to read, and the lane keeps its carry.
        begun = positions >= 0
        carry = jax.tree.map(
            lambda a, b: jnp.where(begun.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, carry
        )
        return carry, jnp.sum(jnp.where(counted, loss, 0))

    _, summed = jax.lax.scan(step, initial, jnp.arange(-warm_up, stretch))
    return summed / math.log(2)


def mean(losses: Any, num_tokens: int) -> Any:
    """Bits per character from `losses` [..., T], summed in float64."""
    return np.sum(np.asarray(losses), axis=-1, dtype=np.float64) / (num_tokens - 1)
