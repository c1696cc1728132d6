"""The adding problem (Hochreiter and Schmidhuber, 1997), in the form of Arjovsky et al. (2016)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Batch, Key, Task
from kfrtrl_jax._src.losses import squared_error
from kfrtrl_jax._src.shapes import require_positive
from kfrtrl_jax._src.tasks.common import following, vectors
from kfrtrl_jax._src.tasks.random_words import below, uniform, words


class AddingState(NamedTuple):
    """Each lane's place in its sequence.

    Attributes:
      position: [B], of the previous time step, counted from 0.
      first: [B], the position of the marker in the first half.
      second: [B], that of the marker in the second half.
      total: [B], the sum of the marked values so far.
    """

    position: Array
    first: Array
    second: Array
    total: Array


def adding(*, batch_size: int, length: int = 100) -> Task:
    """Adds the two marked ones of many numbers; the sum is asked for at the last step.

    An input is (value, marker): values are uniform in [0, 1), the marker is 1 at one step in each
    half of the sequence and 0 at all others. The target, [1], is the sum of the marked values so
    far, and only the last step's counts. Predicting 1 has a mean square error of 1/6, the task's
    chance loss. As in the literature of this form, the mean square error is also what the task is
    judged by (Hochreiter and Schmidhuber, 1997; Le et al., 2015, arXiv:1504.00941; Arjovsky et al.,
    2016, arXiv:1511.06464).

    Sequences follow each other without gaps. All lanes start theirs together, so that the loss is a
    mean over B sequences at every step that counts.

    Args:
      batch_size: B, the number of lanes.
      length: steps of a sequence; the first half is the shorter one of an odd length.

    Raises:
      ValueError: if batch_size is less than 1 or length is less than 2.
    """
    require_positive(batch_size=batch_size)
    if length < 2:
        raise ValueError(f"length must be at least 2, one step for each marker, got {length}")
    half = length // 2

    def init(key: Key) -> AddingState:
        del key
        zeros = jnp.zeros(batch_size, jnp.int32)
        return AddingState(zeros + (length - 1), zeros, zeros, jnp.zeros(batch_size))

    def sample(state: AddingState, key: Key) -> tuple[AddingState, Batch]:
        for_first, for_second, for_value = words(key, 3, batch_size)
        position = following(state.position, length)
        reset = position == 0
        first = jnp.where(reset, below(for_first, half), state.first)
        second = jnp.where(reset, half + below(for_second, length - half), state.second)
        value = uniform(for_value)
        marker = (position == first) | (position == second)
        total = jnp.where(reset, 0, state.total) + marker * value
        batch = Batch(
            inputs=jnp.stack([value, marker.astype(float)], axis=1),
            targets=total[:, None],
            reset=reset,
            weight=(position == length - 1).astype(float),
        )
        return AddingState(position, first, second, total), batch

    return Task(
        batch_size=batch_size,
        **vectors(2, 1),
        loss=squared_error(),
        chance_loss=1 / 6,
        init=init,
        sample=sample,
    )
