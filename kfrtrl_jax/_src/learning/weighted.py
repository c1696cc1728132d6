"""Losses and their weights: which count, and how much."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src.base import Array, Batch
from kfrtrl_jax._src.lanes import along
from kfrtrl_jax._src.learning.types import Model


def losses_of(model: Model, predictions: Any, batch: Batch) -> Float[Array, "*steps B"]:
    """The loss of every prediction, [..., B]; 0 where the weight is 0, whatever the target is.

    Raises:
      ValueError: if the loss is not a scalar for one lane.
    """
    of_lanes = jax.vmap(model.loss)
    for _ in batch.reset.shape[1:]:
        of_lanes = jax.vmap(of_lanes)
    if batch.weight is None:
        return _scalars(of_lanes(predictions, batch.targets), batch)
    counted = batch.weight != 0

    def chosen(prediction: Array) -> Array:
        # The loss may have no finite derivative at a target that does not count: 0 times it is NaN.
        return jnp.where(along(counted, prediction), prediction, jax.lax.stop_gradient(prediction))

    losses = _scalars(of_lanes(jax.tree.map(chosen, predictions), batch.targets), batch)
    return jnp.where(counted, losses, 0)


def _scalars(losses: Array, batch: Batch) -> Array:
    own = jnp.shape(losses)[batch.reset.ndim :]
    if own:
        raise ValueError(
            f"the loss of one lane must be a scalar, got one of shape {list(own)}: take its mean or sum"
        )
    return losses


def by_predictions(
    model: Model, predictions: Any, batch: Batch
) -> tuple[Any, Float[Array, "*steps B"]]:
    """(the weighted mean loss's derivatives by the predictions, the losses [..., B])."""

    def mean(predictions: Any) -> tuple[Float[Array, ""], Array]:
        losses = losses_of(model, predictions, batch)
        return mean_of(batch, losses), losses

    value, pullback, losses = jax.vjp(mean, predictions, has_aux=True)
    return pullback(jnp.ones_like(value))[0], losses


def weights_of(batch: Batch, losses: Float[Array, "*steps B"]) -> Float[Array, "*steps B"]:
    """The weight of every loss, 1 for a batch without weights."""
    if batch.weight is None:
        return jnp.ones_like(losses)
    return batch.weight.astype(losses.dtype)


def share_of_each(batch: Batch, losses: Float[Array, "*steps B"]) -> Float[Array, ""]:
    """What a loss of weight 1 contributes to the weighted mean: 1 / the sum of weights.

    If no loss counts, it is 1 / the number of losses, so that nothing becomes infinite.
    """
    if batch.weight is None:
        return jnp.asarray(1 / losses.size, losses.dtype)
    total = jnp.sum(weights_of(batch, losses))
    return 1 / jnp.where(total == 0, losses.size, total)


def relative_weights(batch: Batch, losses: Float[Array, "*steps B"]) -> Float[Array, "*steps B"]:
    """The weights over their mean, so that the weighted mean of the losses L is the mean of w L.

    They are 1 for a batch without weights, and 0 where no loss counts.
    """
    if batch.weight is None:
        return jnp.ones_like(losses)
    return weights_of(batch, losses) * share_of_each(batch, losses) * losses.size


def mean_of(batch: Batch, losses: Float[Array, "*steps B"]) -> Float[Array, ""]:
    """The weighted mean over steps and lanes; 0 if no loss counts."""
    if batch.weight is None:
        return jnp.sum(losses) / losses.size
    return jnp.sum(weights_of(batch, losses) * losses) * share_of_each(batch, losses)


def means_of_steps(
    batch: Batch, losses: Float[Array, "K B"]
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """(the weighted mean over lanes at each step, 0 if no loss counts; the sum of their weights)."""
    if batch.weight is None:
        steps, lanes = losses.shape
        return jnp.mean(losses, axis=1), jnp.full(steps, lanes, losses.dtype)
    weights = weights_of(batch, losses)
    total = jnp.sum(weights, axis=1)
    summed = jnp.sum(weights * losses, axis=1)
    return summed / jnp.where(total == 0, 1, total), total
