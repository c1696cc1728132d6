"""Recall of what the first step of a sequence shows: a T-maze and a memory chain.

Both are tasks of reinforcement learning in the form of supervised recall: the right action is the
target, and only the last step counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Array, Batch, Key, Task
from kfrtrl_jax._src.losses import accuracy, cross_entropy
from kfrtrl_jax._src.shapes import require_positive
from kfrtrl_jax._src.tasks.common import following, vectors
from kfrtrl_jax._src.tasks.random_words import below, words

# Observations of Bakker's T-maze.
CUES = np.array([[0, 1, 1], [1, 1, 0]])
CORRIDOR = np.array([1, 0, 1])
JUNCTION = np.array([0, 1, 0])


class TMazeState(NamedTuple):
    """Each lane's place in the maze.

    Attributes:
      position: [B], of the previous time step, 0 at the cue.
      cue: [B], 0 or 1.
    """

    position: Array
    cue: Array


class MemoryChainState(NamedTuple):
    """Each lane's place in its chain.

    Attributes:
      position: [B], of the previous time step, counted from 0.
      context: [B, num_bits], 0 or 1.
      query: [B], which bit of the context is asked for.
    """

    position: Array
    context: Array
    query: Array


def t_maze(*, batch_size: int, corridor: int = 10) -> Task:
    """Walks down a corridor and recalls at its end, a T-junction, the cue seen at its start.

    Observations are [3], without noise: 011 or 110 at the start, the cue for label 0 or 1, then
    corridor - 1 times 101, and 010 at the junction. A sequence has corridor + 1 steps. The target
    is the cue's label, and only the junction's counts. The score is the accuracy there, and chance
    is 1 bit (Bakker, 2001: Reinforcement learning with long short-term memory; there the agent also
    learns to walk).

    Sequences follow each other without gaps, and all lanes start theirs together.

    Args:
      batch_size: B, the number of lanes.
      corridor: steps from the cue to the junction, such as 10, 20 or 40.

    Raises:
      ValueError: if batch_size or corridor is less than 1.
    """
    require_positive(batch_size=batch_size, corridor=corridor)

    def init(key: Key) -> TMazeState:
        del key
        zeros = jnp.zeros(batch_size, jnp.int32)
        return TMazeState(zeros + corridor, zeros)

    def sample(state: TMazeState, key: Key) -> tuple[TMazeState, Batch]:
        position = following(state.position, corridor + 1)
        reset, end = position == 0, position == corridor
        cue = jnp.where(reset, below(words(key, batch_size), 2), state.cue)
        walking = jnp.where(end[:, None], JUNCTION, CORRIDOR)
        seen = jnp.where(reset[:, None], jnp.asarray(CUES)[cue], walking)
        batch = Batch(seen.astype(float), cue, reset, end.astype(float))
        return TMazeState(position, cue), batch

    return _recalled(batch_size, 3, init, sample)


def memory_chain(*, batch_size: int, length: int = 10, num_bits: int = 1) -> Task:
    """Recalls at the end of a chain one of the bits shown at its start.

    Observations are [2 + num_bits]: the time that is left, 1 - t / length at step t; the query, the
    number of the bit that is asked for, at the last step and 0 before; and the context, +1 or -1
    for each bit, at the first step and 0 later. The target is the bit asked for, 0 or 1, and only
    the last step counts. The score is the accuracy there, and chance is 1 bit. This is the memory
    length experiment of bsuite, and with more bits its memory size (Osband et al., 2020,
    arXiv:1908.03568), whose environment shows the first observation twice.

    Sequences follow each other without gaps, and all lanes start theirs together.

    Args:
      batch_size: B, the number of lanes.
      length: steps of a sequence, such as 2 to 128; the bit is kept for length - 1 steps.
      num_bits: of the context.

    Raises:
      ValueError: if an integer is less than 1.
    """
    require_positive(batch_size=batch_size, length=length, num_bits=num_bits)

    def init(key: Key) -> MemoryChainState:
        del key
        zeros = jnp.zeros(batch_size, jnp.int32)
        context = jnp.zeros((batch_size, num_bits), jnp.int32)
        return MemoryChainState(zeros + (length - 1), context, zeros)

    def sample(state: MemoryChainState, key: Key) -> tuple[MemoryChainState, Batch]:
        drawn = words(key, batch_size, num_bits + 1)
        position = following(state.position, length)
        reset, end = position == 0, position == length - 1
        context = jnp.where(reset[:, None], below(drawn[:, 1:], 2), state.context)
        query = jnp.where(reset, below(drawn[:, 0], num_bits), state.query)
        left = 1 - position.astype(float) / length
        shown = jnp.where(reset[:, None], 2.0 * context - 1, 0)
        inputs = jnp.concatenate([left[:, None], jnp.where(end, query, 0)[:, None], shown], axis=1)
        target = jnp.take_along_axis(context, query[:, None], axis=1)[:, 0]
        batch = Batch(inputs, target, reset, end.astype(float))
        return MemoryChainState(position, context, query), batch

    return _recalled(batch_size, 2 + num_bits, init, sample)


def _recalled(
    batch_size: int,
    input_size: int,
    init: Callable[[Array], Any],
    sample: Callable[[Any, Array], tuple[Any, Batch]],
) -> Task:
    """A task of vectors with two labels, equally frequent."""
    return Task(
        batch_size=batch_size,
        **vectors(input_size, 2),
        loss=cross_entropy(),
        chance_loss=1.0,
        init=init,
        sample=sample,
        score=accuracy(),
    )
