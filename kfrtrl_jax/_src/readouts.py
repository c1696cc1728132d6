"""Readouts: from a cell's output to predictions."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src.base import Array, Key, Readout
from kfrtrl_jax._src.shapes import require_shape

Feedback = Literal["symmetric", "random", "adaptive"]
Weights = dict[str, Float[Array, "rows outputs"]]


def linear(
    *,
    input_size: int,
    output_size: int,
    init_scale: float = 0.01,
    feedback: Feedback = "symmetric",
    feedback_scale: float = 1.0,
) -> Readout:
    """Predictions W^T [h; 1], such as logits.

    With feedback other than "symmetric", the error of the prediction reaches h through a matrix of its
    own, B in place of W: no connection needs to know the weight of another one, as in the brain.
    "random" holds B fixed (Lillicrap et al., 2016; "random e-prop" of Bellec et al., 2020).
    "adaptive" changes B by the gradient of W, so that B approaches W if the optimizer decays both
    (Akrout et al., 2019; "adaptive e-prop"; use an optimizer with weight decay, such as adamw). The
    gradient of W stays exact; all gradients that pass through h follow B.

    Args:
      input_size: n, length of h.
      output_size: the length of a prediction.
      init_scale: standard deviation of W.
      feedback: "symmetric" for the derivative, "random" or "adaptive", see above.
      feedback_scale: standard deviation of the entries of B times the square root of output_size.

    Its apply raises ValueError for an h of another length.

    Raises:
      ValueError: for an unknown feedback.
    """
    if feedback not in ("symmetric", "random", "adaptive"):
        raise ValueError(f"feedback must be symmetric, random or adaptive, got {feedback!r}")
    shape = (input_size + 1, output_size)

    def init(key: Key) -> Weights:
        if feedback == "symmetric":
            return {"weights": init_scale * jax.random.normal(key, shape)}
        key, own = jax.random.split(key)
        scale = feedback_scale / output_size**0.5
        return {
            "weights": init_scale * jax.random.normal(key, shape),
            "feedback": scale * jax.random.normal(own, shape),
        }

    def apply(params: Weights, h: Float[Array, " n"]) -> Float[Array, " outputs"]:
        hint = "input_size must be the length of the cell's output"
        require_shape("the readout's input", h, input_size, hint=hint)
        rows = jnp.concatenate([h, jnp.ones(1, h.dtype)])
        if feedback == "symmetric":
            return rows @ params["weights"]
        fixed = jax.lax.stop_gradient
        prediction = fixed(rows) @ params["weights"]
        prediction += _nothing(rows @ fixed(params["feedback"]))
        if feedback == "adaptive":
            prediction += _nothing(fixed(rows) @ params["feedback"])
        return prediction

    return Readout(init, apply)


def _nothing(x: Array) -> Array:
    """0, with the derivatives of x."""
    return x - jax.lax.stop_gradient(x)
