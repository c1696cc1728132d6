"""Losses of a prediction, and scores that a task is judged by."""

from __future__ import annotations

import math

import jax.numpy as jnp
import optax
from jaxtyping import Float

from kfrtrl_jax._src.base import Array, Loss, Score
from kfrtrl_jax._src.shapes import require_shape


def cross_entropy(unit: str = "bits") -> Loss:
    """The cross-entropy of logits [V] with an integer label; differentiated in nats, reported in bits.

    A label outside [0, V) has the loss NaN: a loss that is not to count has the weight 0 in its batch.

    Args:
      unit: the name of the reported unit, such as "bits/char".
    """

    def of_label(logits: Float[Array, " V"], label: Array) -> Float[Array, ""]:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        # optax takes labels below 0 for the last ones.
        return jnp.where(label < 0, jnp.nan, loss)

    return Loss(of_label, unit, 1 / math.log(2))


def squared_error() -> Loss:
    """Half the mean square of the difference of a prediction and its target, both [d].

    It is reported without the factor of one half.
    """

    def half_square(prediction: Float[Array, " d"], target: Float[Array, " d"]) -> Float[Array, ""]:
        _require_same("the target", target, prediction)
        return 0.5 * jnp.mean(jnp.square(prediction - target))

    return Loss(half_square, "mean square", 2.0)


def temporal_difference() -> Loss:
    """The squared error of TD(0), half of (r + discount * v(s') - v(s))^2 with v(s') held fixed.

    The prediction is (v(s), v(s')), each [1], as `tasks.bootstrapped` makes it, and the target begins
    with (r, discount): the reward, or cumulant, that follows, and the factor of v(s'), 0 where an
    episode ends. It is reported without the factor of one half (Sutton, 1988).
    """

    def half_square(prediction: tuple[Array, Array], target: tuple[Array, ...]) -> Float[Array, ""]:
        (value, following), (reward, discount, *_) = prediction, target
        error = reward + discount * following[0] - value[0]
        return 0.5 * jnp.square(error)

    return Loss(half_square, "mean square TD error", 2.0)


def accuracy() -> Score:
    """Whether the largest of the logits [V] is the integer label's."""
    return Score("accuracy", lambda logits, label: 1.0 * (jnp.argmax(logits) == label))


def normalized_square(variance: float = 1.0) -> Score:
    """The normalized mean square error: the mean square divided by the targets' variance."""
    return Score("NMSE", lambda y, target: jnp.mean(jnp.square(y - target)) / variance, False)


def _require_same(name: str, value: Array, like: Array) -> None:
    """Refuses a value of another shape: broadcasting would change the loss silently.

    Raises:
      ValueError: naming both shapes.
    """
    require_shape(
        name, value, *like.shape, hint="a loss compares a prediction with a target like it"
    )
