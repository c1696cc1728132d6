"""Readouts: from a cell's output to predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src.base import Array, Key, Params
from kfrtrl_jax._src.shapes import require_shape


class Readout(NamedTuple):
    """A function of a cell's output with parameters of its own, for one lane.

    Attributes:
      init: key -> params.
      apply: (params, output [n]) -> prediction.
    """

    init: Callable[[Key], Params]
    apply: Callable[[Any, Float[Array, " n"]], Array]


def linear(*, input_size: int, output_size: int, init_scale: float = 0.01) -> Readout:
    """Logits W^T [h; 1].

    Args:
      input_size: n, length of h.
      output_size: the number of logits.
      init_scale: standard deviation of W.

    Its apply raises ValueError for an h of another length.
    """

    def init(key: Key) -> dict[str, Float[Array, "rows outputs"]]:
        return {"weights": init_scale * jax.random.normal(key, (input_size + 1, output_size))}

    def apply(
        params: dict[str, Float[Array, "rows outputs"]], h: Float[Array, " n"]
    ) -> Float[Array, " outputs"]:
        hint = "input_size must be the length of the cell's output"
        require_shape("the readout's input", h, input_size, hint=hint)
        return jnp.concatenate([h, jnp.ones(1, h.dtype)]) @ params["weights"]

    return Readout(init, apply)
