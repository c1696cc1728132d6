"""String memorization with a curriculum (Mujika et al., 2018; Benzing et al., 2019)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import Array, Batch, Key, Task
from kfrtrl_jax._src.lanes import is_key
from kfrtrl_jax._src.losses import cross_entropy
from kfrtrl_jax._src.shapes import require_key, require_positive, require_shape
from kfrtrl_jax._src.tasks.common import tokens

START, FILLER = 2, 3
VOCABULARY_SIZE = 4


class CopyState(NamedTuple):
    """Each lane's position in its string, and the progress of the curriculum.

    Attributes:
      position: [B], the position of the previous time step in its sequence, counted from 0.
      length: [B], T of the lane's sequence.
      bits: [B] keys, from which the bits of a sequence are drawn again whenever they are needed.
      sequence_length: T*, a scalar.
      running_loss: the exponential average of the loss, in bits.
      started: whether a step has been made.
    """

    position: Array
    length: Array
    bits: Key
    sequence_length: Array
    running_loss: Array
    started: Array


def copy(
    *,
    batch_size: int,
    threshold: float = 0.15,
    restart: float = 0.3,
    decay: float = 0.999,
    shortening: int = 4,
    initial_loss: float = 2.0,
    initial_length: int = 1,
) -> Task:
    """Repeats T random bits after T + 1 fillers; T grows with success.

    A sequence has 2T + 2 steps: inputs [2, b_1..b_T, 3, ..., 3], targets T + 1 times 3, then
    [2, b_1..b_T]. Sequences follow each other without gaps in every lane. T* starts at
    `initial_length`, and a new sequence draws T = max(1, T* - U{0..shortening}). If the running loss is
    below the threshold when a lane starts a sequence, T* increases by one and the running loss is set
    to `restart`. T* has no upper bound. With a threshold of 0 it does not grow, and with a shortening
    of 0 all strings have T* bits.

    Args:
      batch_size: B, the number of lanes.
      threshold: in bits per character.
      restart: in bits per character.
      decay: of the running loss's exponential average.
      shortening: the largest amount by which a sequence is shorter than T*.
      initial_loss: the running loss before the first step, in bits; guessing has a loss of two bits.
      initial_length: T* at the first step.

    Raises:
      ValueError: if batch_size or initial_length is less than 1, another number is negative, or decay
        is not in [0, 1); from `init`, for a key of unsafe_rbg, which does not mix what is folded in:
        strings would be few.
    """
    require_positive(batch_size=batch_size, initial_length=initial_length)
    bounds.require("[0, 1)", decay=decay)
    bounds.require("[0, inf)", threshold=threshold, restart=restart, initial_loss=initial_loss)
    bounds.require("[0, inf)", shortening=shortening)

    def init(key: Key) -> CopyState:
        require_key("key", key)
        _require_mixing(key)
        return CopyState(
            # Past the end of a sequence of length 1: every lane starts one at the first step.
            position=jnp.full(batch_size, 3, jnp.int32),
            length=jnp.ones(batch_size, jnp.int32),
            bits=jax.random.split(key, batch_size),
            sequence_length=jnp.asarray(initial_length, jnp.int32),
            running_loss=jnp.asarray(initial_loss, float),
            started=jnp.zeros((), bool),
        )

    def observe(state: CopyState, loss: Array) -> CopyState:
        require_shape("loss", loss, hint="pass the mean over lanes, in bits")
        averaged = decay * state.running_loss + (1 - decay) * loss
        return state._replace(running_loss=jnp.where(state.started, averaged, state.running_loss))

    def sample(state: CopyState, key: Key) -> tuple[CopyState, Batch]:
        # One split in place of several draws, each of which costs as much as a small product on a CPU:
        # a new key is itself random bits.
        fresh, of_lengths = jax.random.split(key, (2, batch_size))
        position = state.position + 1
        reset = position >= 2 * state.length + 2
        up = jnp.any(reset) & (state.running_loss < threshold)
        sequence_length = state.sequence_length + up
        running_loss = jnp.where(up, restart, state.running_loss).astype(state.running_loss.dtype)
        # Biased, as 2^32 is no multiple of the number of lengths, but negligibly so.
        shorter = (_words(of_lengths) % (shortening + 1)).astype(jnp.int32)
        drawn = jnp.maximum(1, sequence_length - shorter)
        length = jnp.where(reset, drawn, state.length)
        position = jnp.where(reset, 0, position)
        # Mapped over lanes, as raw keys have one more axis.
        bits = jax.vmap(jnp.where)(reset, fresh, state.bits)

        presenting = position <= length
        place = jnp.where(presenting, position - 1, position - length - 2)
        bit = _words(jax.vmap(jax.random.fold_in)(bits, place)) & 1
        symbol = jnp.where(place < 0, START, bit.astype(jnp.int32))
        batch = Batch(
            inputs=jnp.where(presenting, symbol, FILLER),
            targets=jnp.where(presenting, FILLER, symbol),
            reset=reset,
        )
        new = CopyState(position, length, bits, sequence_length, running_loss, jnp.ones((), bool))
        return new, batch

    def metrics(state: CopyState) -> dict[str, Array]:
        return {"sequence_length": state.sequence_length}

    return Task(
        batch_size=batch_size,
        **tokens(VOCABULARY_SIZE),
        loss=cross_entropy("bits/char"),
        chance_loss=2.0,
        init=init,
        sample=sample,
        observe=observe,
        metrics=metrics,
    )


def _require_mixing(key: Key) -> None:
    typed = key if is_key(key) else jax.random.wrap_key_data(key)
    if str(jax.random.key_impl(typed)) == "unsafe_rbg":
        raise ValueError(
            "copy folds places into keys to draw the bits of its strings, and keys of unsafe_rbg do "
            "not mix them: use threefry2x32 or rbg (jax_default_prng_impl)"
        )


def _words(keys: Array) -> Array:
    """The last 32 bits of each key of [B]."""
    data = jax.random.key_data(keys) if is_key(keys) else keys
    return data[:, -1]
