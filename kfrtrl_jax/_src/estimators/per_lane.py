"""An influence pulled lane by lane."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src.base import Array, InfluenceEstimator


def pull_lanes(
    estimator: InfluenceEstimator, state: Any, cotangent: Float[Array, "B n"]
) -> tuple[Float[Array, "B _m _g"], ...]:
    """c_b^T G_b of every lane b by itself, for what does not add lanes up, such as eligibility traces.

    It costs B pulls. A program that needs it at every step had better make a learner of one lane and
    map it over lanes by `jax.vmap`, as `control.actor_critic` does.

    Args:
      estimator: any.
      state: of the estimator.
      cotangent: c, [B, n].

    Returns:
      For every site [B, m, g]; the sum over lanes is `estimator.pull(state, cotangent)`.
    """
    own = jnp.eye(cotangent.shape[0], dtype=bool)[..., None]
    return jax.vmap(lambda c: estimator.pull(state, c))(jnp.where(own, cotangent, 0))
