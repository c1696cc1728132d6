"""Optimizers that clip the cell's gradient and leave the readout's as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def clip_cell(clip_norm: float) -> optax.GradientTransformation:
    """Scales the gradient under "cell" down to the norm `clip_norm`; 0 turns clipping off.

    Its update raises ValueError for gradients that are not a dict with "cell".
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        if not (isinstance(updates, dict) and "cell" in updates):
            raise ValueError(
                f'clip_cell needs gradients {{"cell": ..., "readout": ...}}, as a learner gives, got '
                f"{jax.tree.structure(updates)}"
            )
        norm = optax.tree.norm(updates["cell"])
        limit = jnp.asarray(clip_norm)
        factor = jnp.where((limit > 0) & (norm > limit), limit / norm, 1.0)
        clipped = jax.tree.map(lambda g: (g * factor).astype(g.dtype), updates["cell"])
        return {**updates, "cell": clipped}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def adam(
    *,
    learning_rate: float,
    clip_norm: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, 2015, arXiv:1412.6980)."""
    return optax.chain(clip_cell(clip_norm), optax.adam(learning_rate, b1, b2, eps))


def adamw(
    *,
    learning_rate: float,
    clip_norm: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""
    decayed = optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay)
    return optax.chain(clip_cell(clip_norm), decayed)


def sgd(
    *, learning_rate: float, clip_norm: float = 1.0, momentum: float = 0.0
) -> optax.GradientTransformation:
    """Gradient descent with momentum."""
    return optax.chain(clip_cell(clip_norm), optax.sgd(learning_rate, momentum))


def rmsprop(
    *, learning_rate: float, clip_norm: float = 1.0, decay: float = 0.9, eps: float = 1e-8
) -> optax.GradientTransformation:
    """RMSProp (Tieleman and Hinton, 2012)."""
    return optax.chain(clip_cell(clip_norm), optax.rmsprop(learning_rate, decay, eps))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
    "rmsprop": rmsprop,
}
