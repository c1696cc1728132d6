"""The same training with BrainTrace (Wang et al., 2026), written as its documentation recommends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp

# Our names -> theirs. With more than one lane, its UORO keeps a single pair of factors for all of them.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "snap": {"algorithm": braintrace.SnAp, "n": 1},
    "rtrl": {"algorithm": braintrace.SnAp, "n": 2},
    "e_prop": {"algorithm": braintrace.D_RTRL},
    "uoro": {"algorithm": braintrace.UORO, "vjp_method": "single-step"},
    "pp_prop": {"algorithm": braintrace.pp_prop, "decay_or_rank": 0.9},
}


def make_training(
    name: str, weights: jax.Array, batch: int, rate: float
) -> tuple[Callable[[jax.Array, jax.Array], None], Callable[[], jax.Array]]:
    """A tanh network with these weights [inputs + n + 1, n], whose last row is the bias.

    Returns:
      (xs [T, B, inputs], ys [T, B, n]) -> None, which makes T steps with an update at each; and a
      function that returns the current weights.
    """
    inputs, n = weights.shape[0] - weights.shape[1] - 1, weights.shape[1]
    cell = braintrace.nn.ValinaRNNCell(inputs, n, activation="tanh")
    example = jnp.zeros((batch, inputs), weights.dtype)
    options = dict(ALGORITHMS[name])
    learner: Any = braintrace.compile(
        cell, options.pop("algorithm"), example, batch_size=batch, **options
    )
    states = cell.states(brainstate.ParamState)
    (state,) = states.values()
    state.value = {"weight": weights[:-1], "bias": weights[-1]}

    def one(x: jax.Array, y: jax.Array) -> None:
        def loss() -> jax.Array:
            return jnp.sum((learner(x) - y) ** 2) / (2 * batch)

        (gradient,) = brainstate.transform.grad(loss, states)().values()
        state.value = jax.tree.map(lambda w, g: w - rate * g, state.value, gradient)

    @brainstate.transform.jit
    def train(xs: jax.Array, ys: jax.Array) -> None:
        brainstate.transform.for_loop(one, xs, ys)

    def present() -> jax.Array:
        return jnp.concatenate([state.value["weight"], state.value["bias"][None]])

    return train, present
