"""What a task is: a source of sequences, made on the device inside the scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array


class Batch(NamedTuple):
    """One time step of B lanes; a segment is the same with a leading time axis [K, B].

    Attributes:
      inputs: [B] int32 tokens.
      targets: [B] int32 tokens.
      reset: [B] bool, whether the lane starts anew before this step: carry and influence.
    """

    inputs: Any
    targets: Any
    reset: Array


class Task(NamedTuple):
    """A stream of batches as pure functions.

    Attributes:
      vocabulary_size: tokens are below it.
      batch_size: B.
      init: key -> state, a pytree on the device.
      sample: (state, key, loss) -> (state, batch); loss is a scalar, the mean over lanes of the time
        step before, in bits.
      metrics: state -> named scalars, such as the sequence length of a curriculum.
      held_out: named streams of tokens [N] to evaluate on.
    """

    vocabulary_size: int
    batch_size: int
    init: Callable[[Array], Any]
    sample: Callable[[Any, Array, Array], tuple[Any, Batch]]
    metrics: Callable[[Any], dict[str, Array]]
    held_out: Mapping[str, np.ndarray]
