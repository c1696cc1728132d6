"""Memory of the last pulse in each of several channels (Sussillo and Barak, 2013)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import Array, Batch, Key, Task
from kfrtrl_jax._src.losses import squared_error
from kfrtrl_jax._src.shapes import require_positive
from kfrtrl_jax._src.tasks.common import following, vectors
from kfrtrl_jax._src.tasks.random_words import uniform, words


class FlipFlopState(NamedTuple):
    """Each lane's place in its sequence.

    Attributes:
      position: [B], of the previous time step, counted from 0.
      bits: [B, n_bits], the last pulse of every channel.
    """

    position: Array
    bits: Array


def flip_flop(
    *, batch_size: int, n_bits: int = 3, length: int = 64, pulse_probability: float = 0.1
) -> Task:
    """Holds the sign of the last pulse in each of n_bits channels.

    Inputs are [n_bits]: in every channel, independently, a pulse of +1 or -1 with equal chances or,
    most of the time, 0. The target is the last pulse of each channel, this step's included. All
    channels have a pulse at the first step of a sequence, so that every target is +1 or -1, and all
    steps count.

    The task is judged by its loss, the mean square error; predicting 0 has an error of 1, the
    chance loss (Sussillo and Barak, 2013: Opening the black box). Sequences follow each other
    without gaps, and all lanes start theirs together. Sequences of 64 steps that begin with pulses
    are those of Golub and Sussillo (2018: FixedPointFinder), whose pulse_probability is 0.5.

    Args:
      batch_size: B, the number of lanes.
      n_bits: the number of channels.
      length: steps of a sequence.
      pulse_probability: of a pulse in one channel at one step after the first, between 0 and 1.

    Raises:
      ValueError: if an integer is less than 1, or pulse_probability is not in [0, 1].
    """
    require_positive(batch_size=batch_size, n_bits=n_bits, length=length)
    bounds.require("[0, 1]", pulse_probability=pulse_probability)

    def init(key: Key) -> FlipFlopState:
        del key
        return FlipFlopState(
            jnp.full(batch_size, length - 1, jnp.int32), jnp.zeros((batch_size, n_bits))
        )

    def sample(state: FlipFlopState, key: Key) -> tuple[FlipFlopState, Batch]:
        drawn = words(key, batch_size, n_bits)
        position = following(state.position, length)
        reset = position == 0
        pulse = reset[:, None] | (uniform(drawn) < pulse_probability)
        # The last bit has no part in the uniform number.
        sign = 2.0 * (drawn & 1).astype(state.bits.dtype) - 1
        bits = jnp.where(pulse, sign, state.bits)
        return FlipFlopState(position, bits), Batch(jnp.where(pulse, sign, 0), bits, reset)

    return Task(
        batch_size=batch_size,
        **vectors(n_bits, n_bits),
        loss=squared_error(),
        chance_loss=1.0,
        init=init,
        sample=sample,
    )
