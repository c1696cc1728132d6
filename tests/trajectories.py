"""Small cells on random sequences, linearized along them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax import cells, readouts
from kfrtrl_jax.base import Cell, InfluenceEstimator
from kfrtrl_jax.linearization import Linearizer, make_linearizer

INPUT_SIZE, HIDDEN_SIZE, BATCH_SIZE, CLASSES = 3, 4, 2, 3

SMALL_CELLS: dict[str, Cell] = {
    "vanilla": cells.vanilla(input_size=INPUT_SIZE, hidden_size=HIDDEN_SIZE, init_scale=0.7),
    "recurrent_highway": cells.recurrent_highway(
        input_size=INPUT_SIZE, hidden_size=HIDDEN_SIZE, init_scale=0.7
    ),
    "deep_recurrent_highway": cells.recurrent_highway(
        input_size=INPUT_SIZE, hidden_size=HIDDEN_SIZE, depth=3, candidate="tanh", init_scale=0.7
    ),
    "lstm": cells.lstm(input_size=INPUT_SIZE, hidden_size=HIDDEN_SIZE, init_scale=0.7),
    "gru": cells.gru(input_size=INPUT_SIZE, hidden_size=HIDDEN_SIZE, init_scale=0.7),
}
READOUT = readouts.linear(input_size=HIDDEN_SIZE, output_size=CLASSES, init_scale=0.5)


class Trajectory(NamedTuple):
    """T steps of a cell with fixed parameters; lane 1 starts anew in the middle."""

    cell: Cell
    linearizer: Linearizer
    params: Any
    carries: Any  # [T, B, ...], before each step, after its reset
    inputs: jax.Array  # [T, B, input]
    keep: jax.Array  # [T, B], 0 where a lane starts anew


def sequence(steps: int, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(inputs [T, B, input], targets [T, B], reset [T, B])."""
    key_x, key_y = jax.random.split(jax.random.key(seed))
    inputs = jax.random.normal(key_x, (steps, BATCH_SIZE, INPUT_SIZE))
    targets = jax.random.randint(key_y, (steps, BATCH_SIZE), 0, CLASSES)
    reset = np.zeros((steps, BATCH_SIZE), bool)
    reset[0] = True
    reset[steps // 2, 1] = True
    return inputs, targets, jnp.asarray(reset)


def run(cell: Cell, steps: int, seed: int = 0) -> Trajectory:
    """Random parameters, random inputs."""
    params = cell.init(jax.random.key(seed + 1))
    inputs, _, reset = sequence(steps, seed)
    fresh = jax.tree.map(
        lambda c: jnp.broadcast_to(c, (BATCH_SIZE, *c.shape)), cell.initial_carry()
    )

    def step(carry: Any, xs: Any) -> Any:
        x, reset = xs
        start = jax.tree.map(
            lambda a, b: jnp.where(reset.reshape(-1, *[1] * (a.ndim - 1)), b, a), carry, fresh
        )
        new, _ = jax.vmap(cell.step, in_axes=(None, 0, 0))(params, start, x)
        return new, start

    _, carries = jax.lax.scan(step, fresh, (inputs, reset))
    linearizer = make_linearizer(cell, inputs[0, 0], BATCH_SIZE)
    return Trajectory(cell, linearizer, params, carries, inputs, 1.0 - reset)


def push_all(estimator: InfluenceEstimator, trajectory: Trajectory, key: jax.Array) -> Any:
    """The estimator's state after the whole trajectory."""
    linearizer = trajectory.linearizer

    def step(state: Any, xs: Any) -> Any:
        carry, x, keep, key = xs
        linearization = linearizer.linearize(trajectory.params, carry, x, keep)
        return estimator.push(state, linearization, key), None

    keys = jax.random.split(key, len(trajectory.inputs))
    state, _ = jax.lax.scan(
        step,
        estimator.init(linearizer.structure),
        (trajectory.carries, trajectory.inputs, trajectory.keep, keys),
    )
    return state


def flat(tree: Any) -> jax.Array:
    """All leaves in one vector."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def influence_rows(
    estimator: InfluenceEstimator, trajectory: Trajectory, state: Any, cotangents: jax.Array
) -> jax.Array:
    """For every cotangent of [C, B, n], the gradient that the estimator gives, [C, P]."""
    return jax.vmap(
        lambda c: flat(trajectory.linearizer.gradient(trajectory.params, estimator.pull(state, c)))
    )(cotangents)
