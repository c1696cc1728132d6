"""Streams of tasks as NumPy arrays, and the sequences in them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax import tasks


def scanned(task, key, steps):
    """The first batches of a task, [steps, B, ...], told the chance loss at every step."""

    def step(state, key):
        return tasks.draw(task, state, key, jnp.asarray(task.chance_loss))

    first, rest = jax.random.split(key)
    return jax.lax.scan(step, task.init(first), jax.random.split(rest, steps))[1]


def stream(task, steps, seed=0):
    """The same as NumPy arrays."""
    batch = jax.jit(lambda key: scanned(task, key, steps))(jax.random.key(seed))
    return jax.tree.map(np.asarray, batch)


def sequences(batch):
    """The whole sequences of a batch, each with its inputs, targets and weights, in time order.

    They follow each other without gaps from the first step of every lane.
    """
    found = []
    weight = np.ones(batch.reset.shape) if batch.weight is None else batch.weight
    assert set(np.unique(weight)) <= {0.0, 1.0}
    for lane in range(batch.reset.shape[1]):
        starts = np.flatnonzero(batch.reset[:, lane])
        assert starts[0] == 0
        found += [
            (batch.inputs[a:b, lane], batch.targets[a:b, lane], weight[a:b, lane])
            for a, b in itertools.pairwise(starts)
        ]
    return found


def require_frequencies(counts, probabilities):
    """Counts of independent draws are within 5 standard deviations of their expectations."""
    counts, probabilities = np.asarray(counts), np.asarray(probabilities)
    expected = counts.sum() * probabilities
    error = 5 * np.sqrt(expected * (1 - probabilities)) + 1e-9
    np.testing.assert_array_less(np.abs(counts - expected), error)


def require_mean(values, mean, deviation):
    """The mean of independent values of this standard deviation, within 5 of its own deviations."""
    np.testing.assert_allclose(
        np.mean(values), mean, rtol=0, atol=5 * deviation / np.sqrt(len(values))
    )
