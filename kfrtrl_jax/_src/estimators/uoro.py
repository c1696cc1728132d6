"""Unbiased online recurrent optimization (Tallec and Ollivier, 2018, arXiv:1702.05043)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    SiteGradients,
    SiteJacobian,
    Structure,
)
from kfrtrl_jax._src.estimators.common import (
    balance,
    joint_norm,
    random_signs,
)
from kfrtrl_jax._src.estimators.weights import Weights, weights_of
from kfrtrl_jax._src.xla import norm

Noise = Literal["state", "pre_activation"]


class UoroState(NamedTuple):
    """A rank-one influence matrix, G = s~ theta~^T.

    Attributes:
      state_vector: s~, [B, n].
      parameter_vector: theta~, for every site [B, m, g]; [B, f, g] where fixed zeros are left out.
      weights: the weights of every site.
    """

    state_vector: Array
    parameter_vector: tuple[Array, ...]
    weights: tuple[Weights, ...]


def uoro(noise: Noise = "state") -> InfluenceEstimator:
    """s~ <- rho0 J s~ + rho1 nu, theta~ <- theta~ / rho0 + nu^T I / rho1, for random signs nu.

    rho0 and rho1 make the two factors of each product equal in norm. Unbiased; O(n + P) memory and
    O(n^2 + P) work per lane.

    Args:
      noise: where the signs are. "state": nu in {+-1}^n, as above and in the paper. "pre_activation":
        nu_k in {+-1}^g for every term k of every site; s~ receives rho1 sum_k D_k nu_k and theta~ of
        its site receives a_k (x) nu_k / rho1, at the same cost. This is the rank-one form with its
        noise in the space of the pre-activations, on which Cooijmans and Martens (2019,
        arXiv:1902.02405) found their variance reduction; their preUORO goes on to propagate the matrix
        D in place of D nu, which is `kf_rtrl` (with scales and signs that its sites share). Of a step's
        own noise "state" has (n - 1) sum_k |a_k|^2 |D_k|^2, "pre_activation" |D|^2 sum_k g_k |a_k|^2
        less |I|^2: more where there are more pre-activations than state variables, as in gated cells.

    Raises:
      ValueError: if there is no such noise.
    """
    if noise not in get_args(Noise):
        raise ValueError(f"noise must be one of {', '.join(get_args(Noise))}, got {noise!r}")
    project = _by_state if noise == "state" else _by_pre_activation

    def push(state: UoroState, linearization: Linearization, key: Key) -> UoroState:
        # The noise that s~ receives, and the g-sized parts of what every theta~ receives, a_t (x)
        # part_t.
        nu, parts = project(linearization, key)
        immediate_norm = joint_norm(
            [
                weights.norm_of_outer_sum(site.inputs, part)
                for weights, site, part in zip(state.weights, linearization.sites, parts)
            ]
        )
        up, down = balance(norm(nu), immediate_norm)
        return accumulate(
            state,
            linearization,
            up[:, None] * nu,
            [down[:, None, None].astype(part.dtype) * part for part in parts],
        )

    return rank_one(push)


def _by_state(linearization: Linearization, key: Key) -> tuple[Array, list[Array]]:
    """nu and, as nu^T I = sum_t a_t (x) nu^T D_t, all nu^T D_t for every site, [B, T, g]."""
    like = linearization.sites[0]
    shape = (len(like.inputs), like.derivatives.shape[0])
    nu = random_signs(key, shape, like.inputs.dtype)
    return nu, linearization.vector_times(nu)


def _by_pre_activation(linearization: Linearization, key: Key) -> tuple[Array, list[Array]]:
    """sum_k sum_t D_kt nu_kt and every nu_kt."""
    signs = pre_activation_signs(linearization.sites, key)
    terms = [
        jnp.sum(x[..., 0], axis=1)
        for x in linearization.times_each([nu[..., None] for nu in signs])
    ]
    return sum(terms[1:], terms[0]), signs


def pre_activation_signs(sites: Sequence[SiteJacobian], key: Key) -> list[Array]:
    """Independent fair signs for every pre-activation of every term: for every site [B, T, g]."""
    shapes = [(site.derivatives.count, site.derivatives.shape[1]) for site in sites]
    like = sites[0].inputs
    sizes = [t * g for t, g in shapes]
    signs = random_signs(key, (len(like), sum(sizes)), like.dtype)
    parts = jnp.split(signs, np.cumsum(sizes)[:-1], axis=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes)]


def rank_one(
    push: Callable[[UoroState, Linearization, Key], UoroState],
) -> InfluenceEstimator:
    """The estimator that keeps s~ and theta~ and moves them on by `push`."""

    def init(structure: Structure) -> UoroState:
        b, dtype, weights = structure.batch_size, structure.dtype, weights_of(structure)
        return UoroState(
            jnp.zeros((b, structure.state_size), dtype),
            tuple(jnp.zeros((b, *w.shape), dtype) for w in weights),
            weights,
        )

    def pull(state: UoroState, cotangent: Array) -> SiteGradients:
        weight = jnp.sum(cotangent * state.state_vector, axis=1)
        return tuple(
            weights.everywhere(jnp.einsum("b,bmg->mg", weight, theta))
            for weights, theta in zip(state.weights, state.parameter_vector)
        )

    def diagnostics(state: UoroState) -> dict[str, Array]:
        return {
            "state_vector_norm": jnp.mean(norm(state.state_vector)),
            "parameter_vector_norm": jnp.mean(
                joint_norm([norm(theta) for theta in state.parameter_vector])
            ),
        }

    return InfluenceEstimator(init, push, pull, diagnostics)


def accumulate(
    state: UoroState, linearization: Linearization, noise: Array, parts: Sequence[Array]
) -> UoroState:
    """s~ <- rho0 J s~ + noise, theta~ <- theta~ / rho0 + sum_t a_t (x) part_t.

    Args:
      state: s~ and theta~.
      linearization: of the step.
      noise: what s~ receives, [B, n].
      parts: for every site [B, T, g].
    """
    carried = linearization.times(state.state_vector[..., None])[..., 0]
    parameter_norm = joint_norm([norm(theta) for theta in state.parameter_vector])
    up, down = balance(norm(carried), parameter_norm)
    return UoroState(
        up[:, None] * carried + noise,
        tuple(
            down[:, None, None] * theta + weights.outer_sum(site.inputs, part)
            for theta, weights, site, part in zip(
                state.parameter_vector, state.weights, linearization.sites, parts
            )
        ),
        state.weights,
    )
