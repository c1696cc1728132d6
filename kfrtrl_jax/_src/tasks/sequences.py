"""Labelled sequences: the label of a whole sequence is predicted at its last step."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Num

from kfrtrl_jax._src.base import Array, Batch, Key, Task
from kfrtrl_jax._src.losses import accuracy, cross_entropy
from kfrtrl_jax._src.shapes import require_key, require_positive
from kfrtrl_jax._src.tasks.common import vectors
from kfrtrl_jax._src.tasks.random_words import below, words


class Labelled(NamedTuple):
    """Sequences of T vectors with a label each.

    Attributes:
      values: [N, T, d], floats, or bytes that stand for 0..1.
      labels: [N].
    """

    values: Num[np.ndarray, "N T d"]
    labels: Int[np.ndarray, " N"]


class SequenceState(NamedTuple):
    """Which sequence every lane reads, and where.

    Attributes:
      chosen: [B], the number of the lane's sequence.
      position: the step that is read next, from 0; all lanes are at the same.
    """

    chosen: Array
    position: Array


def classification(
    batch_size: int, classes: int, train: Labelled, held_out: dict[str, Labelled]
) -> Task:
    """Reads sequences drawn at random, with replacement, each lane its own.

    All lanes start a sequence at the same step. The weight is 1 at the last step of a sequence and
    0 before.

    Raises:
      ValueError: if batch_size is less than 1.
    """
    require_positive(batch_size=batch_size)
    count, length, size = train.values.shape
    values, labels = jnp.asarray(train.values), jnp.asarray(train.labels, jnp.int32)

    def init(key: Key) -> SequenceState:
        require_key("key", key)
        return SequenceState(jnp.zeros(batch_size, jnp.int32), jnp.zeros((), jnp.int32))

    def sample(state: SequenceState, key: Key) -> tuple[SequenceState, Batch]:
        starts = state.position == 0
        chosen = jnp.where(starts, below(words(key, batch_size), count), state.chosen)
        last = state.position == length - 1
        batch = Batch(
            inputs=_floats(values[chosen, state.position]),
            targets=labels[chosen],
            reset=jnp.full(batch_size, starts),
            weight=jnp.full(batch_size, last, float),
        )
        position = jnp.where(last, 0, state.position + 1)
        return SequenceState(chosen, position), batch

    return Task(
        batch_size=batch_size,
        **vectors(size, classes),
        loss=cross_entropy(),
        chance_loss=math.log2(classes),
        init=init,
        sample=sample,
        score=accuracy(),
        held_out={part: _in_order(sequences) for part, sequences in held_out.items()},
    )


def _floats(values: Num[Array, "*axes d"]) -> Float[Array, "*axes d"]:
    if values.dtype == jnp.uint8:
        return values.astype(float) / 255
    return values.astype(float)


def _in_order(sequences: Labelled) -> Batch:
    """The sequences one after the other."""
    count, length, size = sequences.values.shape
    values = sequences.values.reshape(-1, size)
    scale = 255 if values.dtype == np.uint8 else 1
    position = np.tile(np.arange(length), count)
    return Batch(
        inputs=values.astype(np.float32) / np.float32(scale),
        targets=np.repeat(sequences.labels.astype(np.int32), length),
        reset=position == 0,
        weight=(position == length - 1).astype(np.float32),
    )
