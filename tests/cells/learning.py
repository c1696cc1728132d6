"""Training on the copy task, at a small size."""

import jax
import jax.numpy as jnp
import optax

from kfrtrl_jax import cells, readouts, tasks
from kfrtrl_jax.base import Cell, InfluenceEstimator
from kfrtrl_jax.learning import make_learner


def losses_on_the_copy_task(cell: Cell, estimator: InfluenceEstimator) -> jax.Array:
    """The loss at each of 1,500 steps of 8 lanes, for a cell with inputs of size 4."""
    task = tasks.copy(batch_size=8)
    width = jax.eval_shape(
        lambda key: cell.step(cell.init(key), cell.initial_carry(), jnp.zeros(4))[1],
        jax.random.key(0),
    ).shape[0]
    learner = make_learner(
        cells.on_tokens(cell, 4),
        readouts.linear(input_size=width, output_size=4),
        estimator,
        optax.adam(5e-3),
        batch_size=8,
        example_input=jnp.int32(0),
    )

    def step(carry, key):
        state, task_state, loss = carry
        task_state, batch = tasks.draw(task, task_state, key, loss)
        state, metrics = learner.step(state, jax.tree.map(lambda x: x[None], batch))
        return (state, task_state, metrics.loss[0]), metrics.loss[0]

    first = (learner.init(jax.random.key(0)), task.init(jax.random.key(1)), jnp.float32(2.0))
    keys = jax.random.split(jax.random.key(2), 1500)
    return jax.jit(lambda c, k: jax.lax.scan(step, c, k))(first, keys)[1]
