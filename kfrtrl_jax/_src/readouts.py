"""Readouts: from a cell's output to predictions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src.base import Array, Key, Readout
from kfrtrl_jax._src.shapes import require_shape


def linear(*, input_size: int, output_size: int, init_scale: float = 0.01) -> Readout:
    """Predictions W^T [h; 1], such as logits.

    Args:
      input_size: n, length of h.
      output_size: the length of a prediction.
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
