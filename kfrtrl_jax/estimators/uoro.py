"""Unbiased online recurrent optimization (Tallec and Ollivier, 2018, arXiv:1702.05043)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from kfrtrl_jax.base import Array, InfluenceEstimator, Key, Linearization, SiteGradients, Structure
from kfrtrl_jax.estimators.common import balance, norm, random_signs


class UoroState(NamedTuple):
    """A rank-one influence matrix, G = s~ theta~^T.

    Attributes:
      state_vector: s~, [B, n].
      parameter_vector: theta~, for every site [B, m, g].
    """

    state_vector: Array
    parameter_vector: tuple[Array, ...]


def uoro() -> InfluenceEstimator:
    """s~ <- rho0 J s~ + rho1 nu, theta~ <- theta~ / rho0 + nu^T I / rho1, for random signs nu.

    rho0 and rho1 make the two factors of either product equal in norm. Unbiased; O(n + P) memory and
    O(n^2 + P) work a lane.
    """

    def init(structure: Structure) -> UoroState:
        b, dtype = structure.batch_size, structure.dtype
        return UoroState(
            jnp.zeros((b, structure.state_size), dtype),
            tuple(jnp.zeros((b, s.input_size, s.output_size), dtype) for s in structure.sites),
        )

    def push(state: UoroState, linearization: Linearization, key: Key) -> UoroState:
        carried = linearization.jacobian.times_vector(state.state_vector)
        nu = random_signs(key, carried.shape, carried.dtype)
        # nu^T I is a (x) nu^T D at every site: its norm needs no outer product.
        immediate = [site.derivative.vector_times(nu) for site in linearization.sites]
        inputs = [site.input for site in linearization.sites]
        parameter_norm = _joint([norm(theta) for theta in state.parameter_vector])
        immediate_norm = _joint([norm(a) * norm(d) for a, d in zip(inputs, immediate)])
        up0, down0 = balance(norm(carried), parameter_norm)
        up1, down1 = balance(norm(nu), immediate_norm)
        return UoroState(
            up0[:, None] * carried + up1[:, None] * nu,
            tuple(
                down0[:, None, None] * theta + (down1[:, None] * a)[:, :, None] * d[:, None, :]
                for theta, a, d in zip(state.parameter_vector, inputs, immediate)
            ),
        )

    def pull(state: UoroState, cotangent: Array) -> SiteGradients:
        weight = jnp.sum(cotangent * state.state_vector, axis=1)
        return tuple(jnp.einsum("b,bmg->mg", weight, theta) for theta in state.parameter_vector)

    def diagnostics(state: UoroState) -> dict[str, Array]:
        return {
            "state_vector_norm": jnp.mean(norm(state.state_vector)),
            "parameter_vector_norm": jnp.mean(
                _joint([norm(theta) for theta in state.parameter_vector])
            ),
        }

    return InfluenceEstimator(init, push, pull, diagnostics)


def _joint(norms: list[Array]) -> Array:
    """The norm of a vector given those of its parts."""
    return jnp.sqrt(sum((x * x for x in norms[1:]), norms[0] * norms[0]))
