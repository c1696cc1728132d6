"""Estimators made of estimators."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax.base import Array, InfluenceEstimator, Key, Linearization, SiteGradients, Structure
from kfrtrl_jax.matrices import BlockColumns


def average(estimator: InfluenceEstimator, copies: int) -> InfluenceEstimator:
    """The mean of independent copies: as unbiased as one of them, the noise divided by `copies`.

    With `kf_rtrl()` this is r-KF-RTRL-AVG (Benzing et al., 2019, arXiv:1902.03993). The state has a
    leading axis [copies, ...].

    Raises:
      ValueError: if copies is less than 1.
    """
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")

    def init(structure: Structure) -> Any:
        one = estimator.init(structure)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (copies, *x.shape)), one)

    def push(state: Any, linearization: Linearization, key: Key) -> Any:
        return jax.vmap(estimator.push, in_axes=(0, None, 0))(
            state, linearization, jax.random.split(key, copies)
        )

    def pull(state: Any, cotangent: Array) -> SiteGradients:
        gradients = jax.vmap(estimator.pull, in_axes=(0, None))(state, cotangent)
        return jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients)

    def diagnostics(state: Any) -> dict[str, Array]:
        return jax.tree.map(jnp.mean, jax.vmap(estimator.diagnostics)(state))

    return InfluenceEstimator(init, push, pull, diagnostics)


class ResetEveryState(NamedTuple):
    """An estimator's state and its age.

    Attributes:
      inner: the state.
      age: the number of pushes so far, modulo the period.
    """

    inner: Any
    age: Array


def reset_every(period: int, estimator: InfluenceEstimator) -> InfluenceEstimator:
    """The estimator, forgetting everything on every `period`-th push, in all lanes at once.

    It makes any estimator a truncated one: the gradient reaches back `period` steps at the most.

    Raises:
      ValueError: if period is less than 1.
    """
    if period < 1:
        raise ValueError(f"period must be at least 1, got {period}")

    def init(structure: Structure) -> ResetEveryState:
        return ResetEveryState(estimator.init(structure), jnp.zeros((), jnp.int32))

    def push(state: ResetEveryState, linearization: Linearization, key: Key) -> ResetEveryState:
        # To forget is to push a step whose state owes nothing to the one before.
        keep = state.age != 0

        def cut(matrix: BlockColumns) -> BlockColumns:
            return jax.tree.map(lambda values: jnp.where(keep, values, 0), matrix)

        cut_off = linearization._replace(
            jacobian=cut(linearization.jacobian), leak=cut(linearization.leak)
        )
        return ResetEveryState(estimator.push(state.inner, cut_off, key), (state.age + 1) % period)

    def pull(state: ResetEveryState, cotangent: Array) -> SiteGradients:
        return estimator.pull(state.inner, cotangent)

    def diagnostics(state: ResetEveryState) -> dict[str, Array]:
        return estimator.diagnostics(state.inner)

    return InfluenceEstimator(init, push, pull, diagnostics)
