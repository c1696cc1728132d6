"""Any segment length, update interval and window, compared with sums over pairs of steps."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfrtrl_jax import cells, estimators, readouts
from kfrtrl_jax.base import Batch
from kfrtrl_jax.learning import make_learner
from tests.helpers.interpreter import evaluated, traced
from tests.helpers.learners import learner_of, segments
from tests.helpers.nights import at_night, some
from tests.trajectories import BATCH_SIZE, READOUT, SMALL_CELLS, flat, sequence

STEPS = 12
# (segment_length, update_every, window)
LENGTHS = [(1, 1, 1), (4, 1, 4), (4, 2, 4), (4, 4, 4), (1, 1, 4), (2, 1, 6), (2, 2, 4), (12, 1, 12)]


class Recorded(NamedTuple):
    """The gradients passed to an optimizer and the parameters at that time, [updates, ...]."""

    count: jax.Array
    gradients: dict
    parameters: dict


def recorder(updates: int, learning_rate: float) -> optax.GradientTransformation:
    """Gradient descent that records its gradients and parameters."""

    def init(parameters):
        many = jax.tree.map(lambda p: jnp.zeros((updates, *p.shape), p.dtype), parameters)
        return Recorded(jnp.zeros((), int), many, many)

    def update(gradient, state, parameters):
        def put(many, one):
            return jax.tree.map(lambda m, x: m.at[state.count].set(x), many, one)

        new = Recorded(
            state.count + 1, put(state.gradients, gradient), put(state.parameters, parameters)
        )
        return jax.tree.map(lambda g: -learning_rate * g, gradient), new

    return optax.GradientTransformation(init, update)


def learned(cell, estimator, lengths, learning_rate):
    """(gradients, parameters) of all updates over a sequence in which a lane restarts."""
    segment_length, update_every, window = lengths
    learner = learner_of(
        cell,
        estimator,
        recorder(STEPS // update_every, learning_rate),
        segment_length=segment_length,
        update_every=update_every,
        window=window,
    )
    batches = segments(batches_of(), segment_length)
    start = evaluated(learner.init, jax.random.key(0))
    state, _ = evaluated(lambda s, b: jax.lax.scan(learner.step, s, b), start, batches)
    return state.optimizer_state.gradients, state.optimizer_state.parameters


def batches_of():
    inputs, targets, _ = sequence(STEPS)
    reset = np.zeros((STEPS, BATCH_SIZE), bool)
    # Inside a segment of any length, and one step after the start of another segment.
    reset[[0, 5, 6], 0] = True
    # From here on there is more than any window holds, so that the influence counts too.
    reset[[0, 2], 1] = True
    return Batch(inputs, targets, jnp.asarray(reset))


def by_pairs_of_steps(cell, parameters, update_every, reach):
    """For every update the sum over its losses and the steps j before each, as far as `reach`.

    By the Jacobian of each step, lane by lane, at the parameters that the step was taken with.

    Args:
      cell: the cell.
      parameters: at each step, [STEPS, ...].
      update_every: losses for each update.
      reach: (step t, step j) -> whether the loss at t goes back to j.
    """
    batches = jax.tree.map(np.asarray, batches_of())
    start = jax.tree.map(lambda c: np.broadcast_to(c, (BATCH_SIZE, *c.shape)), cell.initial_carry())
    derivatives, carry, steps = derivatives_of_a_step(cell), start, []
    for t in range(STEPS):
        carry = jax.tree.map(
            lambda c, s, t=t: np.where(batches.reset[t].reshape(-1, *[1] * (s.ndim - 1)), s, c),
            carry,
            start,
        )
        here = jax.tree.map(lambda p, t=t: p[t], parameters)
        carry, found = derivatives(here, carry, batches.inputs[t], batches.targets[t])
        steps.append(found)

    gradients, total = [], 0
    for t in range(STEPS):
        for lane in range(BATCH_SIZE):
            by_output, by_readout = (x[lane] for x in steps[t].loss)
            by_weights, by_carry = (by_output @ x[lane] for x in steps[t].output)
            by_cell = np.zeros_like(by_weights)
            for j in range(t, -1, -1):
                if not reach(t, j):
                    break
                if j < t:
                    by_weights, by_carry = (by_carry @ x[lane] for x in steps[j].carry)
                by_cell += by_weights
                if batches.reset[j, lane]:
                    break
            total = total + np.concatenate([by_cell, by_readout])
        if (t + 1) % update_every == 0:
            gradients.append(total / update_every / BATCH_SIZE)
            total = 0
    return np.stack(gradients)


class Derivatives(NamedTuple):
    """Of a step of all lanes, as matrices: [B, outputs, inputs].

    Attributes:
      carry: of the new carry, by the cell's parameters and by the old carry.
      output: of the output, by the same.
      loss: by the output, [B, output], and by the readout's parameters, [B, P].
    """

    carry: tuple[np.ndarray, np.ndarray]
    output: tuple[np.ndarray, np.ndarray]
    loss: tuple[np.ndarray, np.ndarray]


@functools.cache
def derivatives_of_a_step(cell):
    """(parameters, carries, inputs, targets) -> (new carries, `Derivatives`), traced once."""

    def of_lane(parameters, carry, x, target):
        new, output = cell.step(parameters["cell"], carry, x)

        def step(p, c):
            new, output = cell.step(p, c, x)
            return flat(new), output

        def loss(output, readout):
            logits = READOUT.apply(readout, output)
            return optax.softmax_cross_entropy_with_integer_labels(logits, target)

        def matrix(tree, rows):
            return jnp.concatenate([a.reshape(rows, -1) for a in jax.tree.leaves(tree)], axis=1)

        of_carry, of_output = jax.jacrev(step, argnums=(0, 1))(parameters["cell"], carry)
        by_output, by_readout = jax.grad(loss, argnums=(0, 1))(output, parameters["readout"])
        return new, Derivatives(
            tuple(matrix(tree, flat(new).size) for tree in of_carry),
            tuple(matrix(tree, output.size) for tree in of_output),
            (by_output, flat(by_readout)),
        )

    batches = batches_of()
    carry = jax.tree.map(
        lambda c: jnp.broadcast_to(c, (BATCH_SIZE, *c.shape)), cell.initial_carry()
    )
    key = jax.random.key(0)
    parameters = {"cell": cell.init(key), "readout": READOUT.init(key)}
    return traced(
        jax.vmap(of_lane, in_axes=(None, 0, 0, 0)),
        *(parameters, carry, batches.inputs[0], batches.targets[0]),
    )


def flat_updates(gradients):
    return np.asarray(jax.vmap(flat)(gradients))


def at_steps(parameters, update_every):
    return jax.tree.map(lambda p: jnp.repeat(p, update_every, axis=0), parameters)


@pytest.mark.parametrize(
    ("cell", "lengths"),
    [
        *(("recurrent_highway", lengths) for lengths in some(LENGTHS)),
        *(("lstm", lengths) for lengths in [(2, 1, 6), (4, 4, 4)]),
        ("deep_recurrent_highway", (4, 2, 8)),
    ],
    ids=str,
)
def test_rtrl_is_a_sum_over_pairs_of_steps(cell, lengths):
    cell, update_every = SMALL_CELLS[cell], lengths[1]
    gradients, parameters = learned(cell, estimators.rtrl(), lengths, learning_rate=0.5)
    expected = by_pairs_of_steps(
        cell, at_steps(parameters, update_every), update_every, lambda t, j: True
    )
    # The parameters have moved far enough for it to matter.
    assert np.linalg.norm(flat_updates(parameters)[-1] - flat_updates(parameters)[0]) > 0.1
    np.testing.assert_allclose(flat_updates(gradients), expected, atol=1e-10)


@pytest.mark.parametrize(
    "lengths", [(3, 1, 6), (2, 2, 4), *at_night((1, 1, 4), (4, 1, 4))], ids=str
)
def test_truncated_reaches_back_as_far_as_the_window(lengths):
    segment_length, update_every, window = lengths
    cell = SMALL_CELLS["gru"]
    gradients, parameters = learned(cell, estimators.truncated(), lengths, learning_rate=0.5)

    def reach(t, j):
        start_of_segment = t // segment_length * segment_length
        return j >= start_of_segment - (window - segment_length)

    expected = by_pairs_of_steps(cell, at_steps(parameters, update_every), update_every, reach)
    np.testing.assert_allclose(flat_updates(gradients), expected, atol=1e-10)


@functools.cache
def backpropagated_through_everything():
    cell = SMALL_CELLS["recurrent_highway"]
    _, parameters = learned(cell, estimators.rtrl(), (1, 1, 1), learning_rate=0.0)
    return by_pairs_of_steps(cell, parameters, 1, lambda t, j: True).sum(axis=0)


@pytest.mark.parametrize("lengths", [(3, 1, 3), (6, 3, 12)], ids=str)
def test_with_fixed_parameters_it_is_backpropagation_through_time(lengths):
    cell = SMALL_CELLS["recurrent_highway"]
    gradients, _ = learned(cell, estimators.rtrl(), lengths, learning_rate=0.0)
    total = flat_updates(gradients).sum(axis=0) * lengths[1]
    np.testing.assert_allclose(total, backpropagated_through_everything(), atol=1e-10)


def test_a_gradient_without_updates_has_one_for_each():
    cell, lengths = SMALL_CELLS["recurrent_highway"], {"segment_length": 4, "update_every": 2}
    learner = learner_of(cell, estimators.rtrl(), **lengths)
    segment = jax.tree.map(lambda x: x[0], segments(batches_of(), 4))
    state = evaluated(learner.init, jax.random.key(0))
    gradients, _, losses = evaluated(learner.gradient, state, segment)
    expected, _ = learned(cell, estimators.rtrl(), (4, 2, 4), learning_rate=0.0)
    np.testing.assert_allclose(flat_updates(gradients), flat_updates(expected)[:2], atol=1e-12)
    assert losses.shape == (4,)


@pytest.mark.parametrize(
    ("estimator", "lengths"),
    [
        (estimators.truncated(), {"window": 6}),
        (estimators.rtrl(), {}),
        (estimators.truncated(), {"segment_length": 6, "update_every": 1}),
    ],
)
def test_a_weight_made_of_parameters_counts_at_its_past_values_and_its_present_derivative(
    estimator, lengths
):
    """Of h = sigmoid(a) h + x, with an update at every step."""
    steps, rate = 6, 0.3
    x = jnp.asarray(np.random.default_rng(0).normal(size=(steps, 1, 1)))

    def step(params, h, x):
        h = jax.nn.sigmoid(params["a"]) * h + x
        return h, h

    learner = make_learner(
        cells.from_function(step, lambda key: {"a": jnp.ones(1)}, jnp.zeros(1)),
        readouts.Readout(lambda key: {"none": jnp.zeros(())}, lambda params, output: output),
        estimator,
        optax.sgd(rate),
        batch_size=1,
        example_input=x[0, 0],
        loss=lambda prediction, target: jnp.sum(prediction**2),
        **lengths,
    )
    batch = Batch(x, x, jnp.zeros((steps, 1), bool))
    length = lengths.get("segment_length", 1)
    state = evaluated(learner.init, jax.random.key(0))
    for t in range(0, steps, length):
        segment = jax.tree.map(lambda leaf, t=t: leaf[t : t + length], batch)
        state, _ = evaluated(learner.step, state, segment if length > 1 else batch_at(batch, t))

    def loss(change, past):
        h = jnp.zeros(1)
        for weight, now in zip(past, x[:, 0]):
            h = (weight + change) * h + now
        return jnp.sum(h**2)

    a, past = jnp.ones(1), []
    for _ in range(steps):
        weight, derivative = jax.vjp(jax.nn.sigmoid, a)
        past.append(weight)
        a = a - rate * derivative(jax.grad(loss)(jnp.zeros(1), past))[0]
    np.testing.assert_allclose(state.parameters["cell"]["a"], a, rtol=1e-12)


def batch_at(batch, t):
    return jax.tree.map(lambda leaf: leaf[t], batch)
