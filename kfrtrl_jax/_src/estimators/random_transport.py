"""Influence that each step carries on along a few paths alone, after Shalev Merin (2026)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import InfluenceEstimator, Key, Linearization
from kfrtrl_jax._src.composition import compose
from kfrtrl_jax._src.matrices import BlockColumns, Dense, spans


def random_transport(
    estimator: InfluenceEstimator, paths: int, rescaled: bool = True
) -> InfluenceEstimator:
    """The estimator with L + (n / paths) M * (J - L) in the place of J, for a random mask M.

    L is the leak, the part of J through no product with weights, and is left as it is: what the mask
    takes away are paths through weight matrices. M keeps `paths` of the n entries of each row, a
    different choice in every row, step and lane. So its mean is J, those of different steps are
    independent, and a product of such steps has the mean of the product: as unbiased as the estimator.
    The noise grows with the memory of the network and with n / paths.

    Without rescaling, L + M * (J - L) is smaller than J: biased, with influence that fades faster. With
    0 paths only the leak carries influence.

    After Shalev Merin (2026, arXiv:2603.15195), by whom 4 random paths of 64 recover 84 percent of
    RTRL's online adaptation. Masks that are drawn anew at every step, spare the leak and can be
    rescaled are this library's form. It is for studies of how much of J matters: it costs as much as
    the estimator with a dense J.

    Args:
      estimator: any estimator.
      paths: how many entries of each row of J - L are kept; n or more keep all.
      rescaled: whether to divide by the fraction that is kept.

    Raises:
      ValueError: if paths is negative, or 0 where the rest is to be rescaled.
    """
    bounds.require("[1, inf)" if rescaled else "[0, inf)", paths=paths)

    def push(state: Any, linearization: Linearization, key: Key) -> Any:
        own, inner = jax.random.split(key)
        steps = linearization.singles
        thinned = [
            _thinned(step, paths, rescaled, k)
            for step, k in zip(steps, jax.random.split(own, len(steps)))
        ]
        return estimator.push(state, compose(thinned), inner)

    return estimator._replace(push=push)


def _thinned(step: Linearization, paths: int, rescaled: bool, key: Key) -> Linearization:
    """The step with a random choice of the paths in J."""
    leak, n = step.leak.dense(), step.leak.shape[0]
    through_weights = step.jacobian.dense() - leak
    if paths < n:
        some = jnp.broadcast_to(jnp.arange(n) < paths, through_weights.shape)
        mask = jax.random.permutation(key, some, axis=-1, independent=True)
        scale = n / paths if rescaled else 1
        through_weights = jnp.where(mask, scale * through_weights, 0)
    whole = leak + through_weights
    columns = spans(block.shape[1] for block in step.jacobian.rest)
    blocks = tuple(Dense(whole[..., start:stop]) for start, stop in columns)
    return step._replace(jacobian=BlockColumns(blocks))
