"""Kernel RNN learning (Roth, Kanitscheider and Fiete, 2019, ICLR)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    SiteGradients,
    Structure,
)
from kfrtrl_jax._src.estimators.snap import SnapState, push_on_pattern, snap
from kfrtrl_jax._src.matrices import Banded, BlockColumns, Index

# A decay of 1 would let the traces grow without end.
_SLOWEST_DECAY = 0.999
# A perturbation this many times larger than its filtered noise starts anew.
_MOST_GROWTH = 100.0


class KernlState(NamedTuple):
    """A kernel and the traces that it mixes, G[i, w] = sum_u beta[i, u] e[u, w].

    Attributes:
      kernel: beta, [n, n], shared by the lanes.
      decay: of each unit's trace, [n], shared by the lanes.
      trace: e, on the entries of I, as in `snap(1)`.
      perturbation: delta, the effect on the state of the noise of all steps since the lane began,
        [B, n].
      filtered_noise: omega, the same noise filtered by the decays, [B, n].
      sensitivity: d omega / d decay, [B, n].
    """

    kernel: Float[Array, "n n"]
    decay: Float[Array, " n"]
    trace: SnapState
    perturbation: Float[Array, "B n"]
    filtered_noise: Float[Array, "B n"]
    sensitivity: Float[Array, "B n"]


def kernl(
    learning_rate: float = 0.1, decay_learning_rate: float = 0.1, decay: float = 0.8
) -> InfluenceEstimator:
    """e_u <- decay_u e_u + I_u for each unit's row of I, and G = beta e.

    The product J_t .. J_{s+1}, which carries I_s into G_t, is approximated by beta diag(decay)^(t - s).
    This approximation is learned from noise xi ~ N(0, 1) in the state: delta <- J delta + xi,
    omega <- decay omega + xi, and at every push a gradient step on the mean over lanes of
    |delta - beta omega|^2. beta starts as the identity. A lane, traces included, starts anew where
    J delta = 0: with random delta, where J = 0.

    Pushing several steps at once equals pushing them one by one, with one pass over the traces.

    There are four differences from the paper. The perturbation is linear: J carries it along the
    trajectory itself, so that its size does not matter, whereas the paper runs a second, noisy network.
    A unit is an entry of the state, whatever the cell. A perturbation starts anew where it outgrows
    omega a hundredfold, as in chaotic networks. And a lane's gradient is divided by |delta|^2 plus the
    squared norm of the prediction's derivative, so that learning rates up to 1 are stable for every n,
    and a growing perturbation has little weight.

    Biased, even in the immediate influence, which it represents as beta I; the only noise is that of
    beta and the decays. O(m n + n^2) memory and work per lane for each band of a site with a banded D,
    O(n m g) for a site with a dense D.

    Args:
      learning_rate: of beta.
      decay_learning_rate: of the decays.
      decay: the initial value; decays stay within [0, 0.999].

    Raises:
      ValueError: if decay is not in [0, 1), or a learning rate is negative.
    """
    bounds.require("[0, inf)", learning_rate=learning_rate, decay_learning_rate=decay_learning_rate)
    bounds.require("[0, 1)", decay=decay)
    local = snap(order=1)

    def init(structure: Structure) -> KernlState:
        b, n, dtype = structure.batch_size, structure.state_size, structure.dtype
        zeros = jnp.zeros((b, n), dtype)
        return KernlState(
            jnp.eye(n, dtype=dtype),
            jnp.minimum(jnp.full(n, decay, dtype), _SLOWEST_DECAY),
            local.init(structure),
            *(zeros, zeros, zeros),
        )

    def push(state: KernlState, linearization: Linearization, key: Key) -> KernlState:
        steps = linearization.singles
        keys = [key] if len(steps) == 1 else jax.random.split(key, len(steps))
        decays = []
        for step, k in zip(steps, keys):
            state, decay = _learn_from_step(state, step, k)
            decays.append(decay)
        return state._replace(trace=push_on_pattern(state.trace, linearization, decays))

    def _learn_from_step(
        state: KernlState, step: Linearization, key: Key
    ) -> tuple[KernlState, BlockColumns]:
        """The state after a step except for its traces, and the matrix that carries the traces."""
        carried = step.jacobian.times_vector(state.perturbation)
        goes_on = jnp.any(carried != 0, axis=1, keepdims=True)
        kept = jnp.where(goes_on, state.decay, 0)
        n = carried.shape[1]
        own = Banded(kept[:, None], Index(np.arange(n)[None]), n)

        size = jnp.linalg.norm(carried, axis=1, keepdims=True)
        bound = _MOST_GROWTH * jnp.linalg.norm(state.filtered_noise, axis=1, keepdims=True)
        tame = goes_on & (size <= bound)  # also false for NaN
        xi = jax.random.normal(key, carried.shape, carried.dtype)
        delta = jnp.where(tame, carried, 0) + xi
        omega = jnp.where(tame, kept * state.filtered_noise, 0) + xi
        gamma = jnp.where(tame, kept * state.sensitivity + state.filtered_noise, 0)
        kernel, decays = _learn(state, delta, omega, gamma)
        new = KernlState(kernel, decays, state.trace, delta, omega, gamma)
        return new, BlockColumns((own,))

    def _learn(
        state: KernlState,
        delta: Float[Array, "B n"],
        omega: Float[Array, "B n"],
        gamma: Float[Array, "B n"],
    ) -> tuple[Float[Array, "n n"], Float[Array, " n"]]:
        """beta and the decays after a step on |delta - beta omega|^2."""
        error = delta - omega @ state.kernel.T
        energy = _squares(delta)
        kernel_step = jnp.einsum("bi,bu->iu", error / (energy + _squares(omega)), omega)
        # The prediction's derivative by the decays is beta diag(gamma).
        derivative_norm = _squares(jnp.sqrt(jnp.sum(state.kernel**2, axis=0)) * gamma)
        decay_step = jnp.sum(error @ state.kernel * gamma / (energy + derivative_norm), axis=0)
        lanes = len(delta)
        return (
            state.kernel + learning_rate / lanes * kernel_step,
            jnp.clip(state.decay + decay_learning_rate / lanes * decay_step, 0, _SLOWEST_DECAY),
        )

    def pull(state: KernlState, cotangent: Float[Array, "B n"]) -> SiteGradients:
        return local.pull(state.trace, cotangent @ state.kernel)

    def diagnostics(state: KernlState) -> dict[str, Array]:
        error = state.perturbation - state.filtered_noise @ state.kernel.T
        size = jnp.sum(_squares(state.perturbation))
        return {
            "kernel_error": jnp.sqrt(jnp.sum(_squares(error)) / jnp.where(size > 0, size, 1)),
            "decay_mean": jnp.mean(state.decay),
        }

    return InfluenceEstimator(init, push, pull, diagnostics)


def _squares(x: Float[Array, "B n"]) -> Float[Array, "B 1"]:
    """|x|^2 of every lane."""
    return jnp.sum(x * x, axis=1, keepdims=True)
