"""Decoupled neural interfaces (Jaderberg et al., 2017, arXiv:1608.05343)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import Array, CreditEstimator, Key, Structure
from kfrtrl_jax._src.shapes import require_shape

_DECAY = 0.99


class DniState(NamedTuple):
    """The state of a model of the credit.

    Attributes:
      parameters: of the model: "output" [h + 1, n], and "hidden" [n + 1, h] if it has a hidden layer.
      optimizer_state: the state of the optax optimizer.
      squares: exponential averages over updates of the mean over lanes of |target - prediction|^2,
        |prediction|^2 and |target|^2, [3].
    """

    parameters: dict[str, Float[Array, "rows outputs"]]
    optimizer_state: Any
    squares: Float[Array, " 3"]


def dni(
    *, hidden_units: int = 0, learning_rate: float = 1e-3, share: float = 1.0
) -> CreditEstimator:
    """A model of the credit, trained by bootstrapping: W^T [s; 1], or with one hidden tanh layer.

    Its target at a segment's start is the segment's loss and its own prediction at the segment's end,
    both backpropagated to the start: knowledge of a loss many segments ahead moves back one segment at
    a time. It is trained by Adam on the squared error. The output layer starts at 0, so learning starts
    as truncated backpropagation. It is biased by what the model cannot express or has not yet learned,
    and adds no noise of its own. O(n^2) memory in total, O(n^2) work per lane and segment (n h with a
    hidden layer). Analyzed by Czarnecki et al. (2017, arXiv:1703.00522), and among other online
    algorithms by Marschall et al. (2020, arXiv:1907.02649).

    Args:
      hidden_units: h, 0 for the linear model.
      learning_rate: of Adam.
      share: see `CreditEstimator`.

    Raises:
      ValueError: if hidden_units is negative.
    """
    bounds.require("[0, inf)", hidden_units=hidden_units)
    optimizer = optax.adam(learning_rate)

    def init(structure: Structure, key: Key) -> DniState:
        n, dtype = structure.state_size, jnp.promote_types(structure.dtype, jnp.float32)
        parameters = {"output": jnp.zeros(((hidden_units or n) + 1, n), dtype)}
        if hidden_units:
            hidden = jax.random.normal(key, (n + 1, hidden_units), dtype)
            parameters["hidden"] = hidden / (n + 1) ** 0.5
        return DniState(parameters, optimizer.init(parameters), jnp.zeros(3, dtype))

    def model(
        parameters: dict[str, Float[Array, "rows outputs"]], carry: Float[Array, "B n"]
    ) -> Float[Array, "B n"]:
        require_shape("carry", carry, "B", parameters["output"].shape[1])
        features = carry.astype(parameters["output"].dtype)
        if hidden_units:
            features = jnp.tanh(_affine(parameters["hidden"], features))
        return _affine(parameters["output"], features)

    def predict(state: DniState, carry: Float[Array, "B n"]) -> Float[Array, "B n"]:
        return model(state.parameters, carry)

    def update(
        state: DniState, carry: Float[Array, "B n"], target: Float[Array, "B n"]
    ) -> DniState:
        require_shape("target", target, *carry.shape)

        def error(parameters: dict[str, Array]) -> tuple[Array, Array]:
            prediction = model(parameters, carry)
            return _mean_square(target - prediction), prediction

        (loss, prediction), gradient = jax.value_and_grad(error, has_aux=True)(state.parameters)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state)
        parameters = optax.apply_updates(state.parameters, updates)
        now = jnp.stack([loss, _mean_square(prediction), _mean_square(target)])
        squares = _DECAY * state.squares + (1 - _DECAY) * now.astype(state.squares.dtype)
        return DniState(parameters, optimizer_state, squares)

    def diagnostics(state: DniState) -> dict[str, Float[Array, ""]]:
        error, prediction, target = state.squares
        # 2 p . t = |p|^2 + |t|^2 - |t - p|^2
        product, norms = (prediction + target - error) / 2, jnp.sqrt(prediction * target)
        return {
            "norm": jnp.sqrt(prediction),
            "bootstrap_loss": error,
            "bootstrap_cosine": jnp.where(norms > 0, product / jnp.where(norms > 0, norms, 1), 0),
        }

    return CreditEstimator(init, predict, update, share, diagnostics)


def _affine(
    weights: Float[Array, "rows outputs"], x: Float[Array, "B inputs"]
) -> Float[Array, "B outputs"]:
    return x @ weights[:-1] + weights[-1]


def _mean_square(x: Float[Array, "B n"]) -> Float[Array, ""]:
    """The mean over lanes of |x|^2, x: [B, n]."""
    return jnp.mean(jnp.sum(x * x, axis=1))
