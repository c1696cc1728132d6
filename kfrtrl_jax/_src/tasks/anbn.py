"""Prediction of strings a^n b^n (Gers and Schmidhuber, 2001)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Batch, Key, Task
from kfrtrl_jax._src.losses import accuracy, cross_entropy
from kfrtrl_jax._src.shapes import require_positive
from kfrtrl_jax._src.tasks.common import entropy, tokens
from kfrtrl_jax._src.tasks.random_words import below, words

# As an input the boundary is the start of a string, as a target its end.
BOUNDARY, A, B = 0, 1, 2


class AnbnState(NamedTuple):
    """Each lane's place in its string.

    Attributes:
      position: [B], of the previous time step, counted from 0 at the boundary.
      n: [B], of the string.
    """

    position: Array
    n: Array


def anbn(*, batch_size: int, max_n: int = 10) -> Task:
    """Predicts the next symbol of strings a^n b^n, where n is drawn uniformly from 1 to max_n.

    Tokens are 0 for the boundary between strings, 1 for a and 2 for b. A string takes 2n + 1 steps:
    the inputs are the boundary, n times a and n times b, and the target is always the symbol that
    follows, the boundary after the last b. Only predictable targets count: the first a, and all
    that follow the first b. How many times a comes cannot be predicted, so the losses of the n
    targets that follow an a do not count. Strings follow each other without gaps (Gers and
    Schmidhuber, 2001: LSTM recurrent networks learn simple context-free and context-sensitive
    languages).

    The score is the accuracy on these symbols. Chance is the loss of the best constant prediction:
    of the symbols that count, 2 in max_n + 3 are a, as many are boundaries and the others b.

    Args:
      batch_size: the number of lanes.
      max_n: the largest n.

    Raises:
      ValueError: if batch_size or max_n is less than 1.
    """
    require_positive(batch_size=batch_size, max_n=max_n)

    def init(key: Key) -> AnbnState:
        del key
        n = jnp.ones(batch_size, jnp.int32)
        return AnbnState(2 * n, n)

    def sample(state: AnbnState, key: Key) -> tuple[AnbnState, Batch]:
        reset = state.position == 2 * state.n
        position = jnp.where(reset, 0, state.position + 1)
        n = jnp.where(reset, 1 + below(words(key, batch_size), max_n), state.n)
        symbol = _symbol(position, n)
        after = jnp.where(position == 2 * n, BOUNDARY, _symbol(position + 1, n))
        batch = Batch(
            inputs=symbol,
            targets=after,
            reset=reset,
            weight=(symbol != A).astype(float),
        )
        return AnbnState(position, n), batch

    return Task(
        batch_size=batch_size,
        **tokens(3),
        loss=cross_entropy(),
        chance_loss=entropy([2, 2, max_n - 1]),
        init=init,
        sample=sample,
        score=accuracy(),
    )


def _symbol(position: Array, n: Array) -> Array:
    """The symbol at a position of a string, counted from the boundary before it."""
    symbol = jnp.where(position == 0, BOUNDARY, jnp.where(position <= n, A, B))
    return symbol.astype(jnp.int32)
