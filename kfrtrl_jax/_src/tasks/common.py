"""What tasks have in common: kinds of inputs, positions in sequences, predictions of the next step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Array, Batch, Cell, Key, Readout, Task
from kfrtrl_jax._src.cells.tokens import on_tokens


def following(position: Array, length: int | Array) -> Array:
    """The position after the last time step's: positions go from 0 to length - 1 again and again."""
    return jnp.where(position + 1 == length, 0, position + 1)


def entropy(frequencies: Sequence[float]) -> float:
    """Of a distribution with these relative frequencies, in bits: the loss of the best constant."""
    total = sum(frequencies)
    return -sum(f / total * math.log2(f / total) for f in frequencies if f > 0)


def draw(task: Task, state: Any, key: Key, loss: Array | None = None) -> tuple[Any, Batch]:
    """(state, batch) of the next time step.

    Args:
      task: the task.
      state: of the task.
      key: a PRNG key.
      loss: the reported mean loss of the step before, for a task that observes it; NaN or None if there
        was no step before, or no loss of it counts, of which the task is not told.
    """
    if task.observe is not None and loss is not None:
        state = observed(task.observe, state, jnp.asarray(loss))
    return task.sample(state, key)


def observed(observe: Callable[[Any, Array], Any], state: Any, loss: Array) -> Any:
    """The state of a task that has observed a loss, or as it was if the loss is NaN."""
    known = ~jnp.isnan(loss)
    return jax.tree.map(lambda new, old: jnp.where(known, new, old), observe(state, loss), state)


def observable(losses: Array, weights: Array) -> Array:
    """The mean losses of steps, NaN where none counts, by the sums of their weights."""
    return jnp.where(weights > 0, losses, jnp.nan)


def digest(*parts: np.ndarray | str) -> str:
    """The SHA-256 digest, in hexadecimal, of arrays and texts, in order, with types and shapes."""
    whole = hashlib.sha256()
    for part in parts:
        array = np.frombuffer(part.encode(), np.uint8) if isinstance(part, str) else part
        whole.update(f"{array.dtype.str}{array.shape}".encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def tokens(vocabulary_size: int, output_size: int | None = None) -> dict[str, Any]:
    """The fields of a `Task` whose inputs are tokens below vocabulary_size, and targets too."""
    return {
        "example_input": jnp.zeros((), jnp.int32),
        "input_size": vocabulary_size,
        "output_size": output_size or vocabulary_size,
        "around": lambda cell, readout: (on_tokens(cell, vocabulary_size), readout),
    }


def vectors(input_size: int, output_size: int) -> dict[str, Any]:
    """The fields of a `Task` whose inputs are vectors of floats."""
    return {
        "example_input": jnp.zeros(input_size),
        "input_size": input_size,
        "output_size": output_size,
    }


def bootstrapped(cell: Cell, readout: Readout) -> tuple[Cell, Readout]:
    """A cell and a readout that also predict from the next input, as temporal differences need.

    The input is (x, x'), this step's and the next one's, and the prediction (v(s), v(s')), where s' is
    the state that x' leads to from s. v(s') is held fixed: no gradient goes through it.
    """

    def step(params: Any, carry: Any, x: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any]]:
        carry, output = cell.step(params, carry, x[0])
        _, following = cell.step(*jax.lax.stop_gradient((params, carry)), x[1])
        return carry, (output, following)

    def apply(params: Any, outputs: tuple[Any, Any]) -> tuple[Array, Array]:
        output, following = outputs
        fixed = readout.apply(*jax.lax.stop_gradient((params, following)))
        return readout.apply(params, output), fixed

    return cell._replace(step=step), readout._replace(apply=apply)
