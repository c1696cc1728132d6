"""The copying problem of fixed length (Arjovsky et al., 2016)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Batch, Key, Task
from kfrtrl_jax._src.losses import accuracy, cross_entropy
from kfrtrl_jax._src.shapes import require_positive
from kfrtrl_jax._src.tasks.common import entropy, following, tokens
from kfrtrl_jax._src.tasks.random_words import below, words


class CopyFixedState(NamedTuple):
    """Each lane's place in its sequence.

    Attributes:
      position: [B], of the previous time step, counted from 0.
      symbols: [B, symbols], those of the sequence seen so far; later ones are of the one before.
    """

    position: Array
    symbols: Array


def copy_fixed(
    *,
    batch_size: int,
    symbols: int = 10,
    alphabet: int = 8,
    delay: int = 100,
    every_step: bool = False,
) -> Task:
    """Recalls a string of random symbols after a fixed delay.

    Inputs are tokens: the symbols are 0 to alphabet - 1, a blank is `alphabet` and the cue to
    recall is `alphabet` + 1. A sequence has delay + 2 * symbols steps: random symbols, delay - 1
    blanks, the cue, and as many blanks as there were symbols. The targets are delay + symbols
    blanks and then the symbols. The defaults are the shortest published setting (Arjovsky et al.,
    2016, arXiv:1511.06464).

    Sequences follow each other without gaps, and all lanes start theirs together.

    The score is the accuracy over the steps whose losses count: of the recalled symbols, unless
    every_step is set. Chance is the loss of the best constant prediction, log2(alphabet) bits for
    recalled symbols. With every_step, a network without memory that knows the time has the
    published baseline of symbols * log2(alphabet) / (delay + 2 * symbols) bits.

    Args:
      batch_size: B, the number of lanes.
      symbols: the length of the string.
      alphabet: the number of symbols that it is drawn from, uniformly.
      delay: steps from the last symbol to the cue.
      every_step: whether all losses count, as in the literature, or only those of recalled symbols.

    Raises:
      ValueError: if an integer is less than 1.
    """
    require_positive(batch_size=batch_size, symbols=symbols, alphabet=alphabet, delay=delay)
    blank, cue = alphabet, alphabet + 1
    length = delay + 2 * symbols

    def init(key: Key) -> CopyFixedState:
        del key
        return CopyFixedState(
            jnp.full(batch_size, length - 1, jnp.int32),
            jnp.zeros((batch_size, symbols), jnp.int32),
        )

    def sample(state: CopyFixedState, key: Key) -> tuple[CopyFixedState, Batch]:
        position = following(state.position, length)
        new = below(words(key, batch_size), alphabet)
        here = position[:, None] == jnp.arange(symbols)
        string = jnp.where(here, new[:, None], state.symbols)
        place = position - delay - symbols
        recalled = jnp.take_along_axis(string, jnp.maximum(place, 0)[:, None], axis=1)[:, 0]
        waiting = jnp.where(position == symbols + delay - 1, cue, blank)
        batch = Batch(
            inputs=jnp.where(position < symbols, new, waiting),
            targets=jnp.where(place >= 0, recalled, blank),
            reset=position == 0,
            weight=None if every_step else (place >= 0).astype(float),
        )
        return CopyFixedState(position, string), batch

    chance = math.log2(alphabet)
    if every_step:
        chance = entropy([delay + symbols, *[symbols / alphabet] * alphabet])
    return Task(
        batch_size=batch_size,
        **tokens(alphabet + 2, alphabet + 1),
        loss=cross_entropy(),
        chance_loss=chance,
        init=init,
        sample=sample,
        score=accuracy(),
    )
