"""Readouts: what reaches the cell by feedback weights that are not the readout's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfrtrl_jax import estimators, readouts
from kfrtrl_jax.base import Batch
from kfrtrl_jax.learning import make_learner
from tests.helpers.interpreter import evaluated
from tests.trajectories import BATCH_SIZE, CLASSES, HIDDEN_SIZE, SMALL_CELLS, sequence

SIZES = {"input_size": HIDDEN_SIZE, "output_size": CLASSES, "init_scale": 0.5}


def readout_of(feedback):
    readout = readouts.linear(**SIZES, feedback=feedback)
    return readout, readout.init(jax.random.key(0))


@pytest.mark.parametrize("feedback", ["random", "adaptive"])
def test_errors_go_through_feedback_weights_and_weights_have_their_own_gradient(feedback):
    readout, params = readout_of(feedback)
    h, error = jnp.arange(1.0, HIDDEN_SIZE + 1), np.array([0.3, -0.2, 1.0])
    prediction, pullback = jax.vjp(readout.apply, params, h)
    np.testing.assert_allclose(prediction, np.append(h, 1) @ params["weights"], rtol=1e-14)
    gradient, by_h = pullback(jnp.asarray(error))
    np.testing.assert_allclose(by_h, params["feedback"][:-1] @ error, rtol=1e-12)
    exact = np.outer(np.append(h, 1), error)
    np.testing.assert_allclose(gradient["weights"], exact, rtol=1e-12)
    adapted = exact if feedback == "adaptive" else np.zeros_like(exact)
    np.testing.assert_allclose(gradient["feedback"], adapted, rtol=1e-12)


def test_a_learner_sends_its_cell_the_fed_back_error():
    cell, (readout, _) = SMALL_CELLS["vanilla"], readout_of("random")
    learner = make_learner(
        cell,
        readout,
        estimators.truncated(),
        optax.sgd(0.1),
        batch_size=BATCH_SIZE,
        example_input=jnp.zeros(3),
    )
    state = evaluated(learner.init, jax.random.key(1))
    inputs, targets, reset = sequence(1)
    segment = Batch(inputs, targets, reset)
    gradient, _, _ = evaluated(learner.gradient, state, segment)

    def sent(cell_params):
        total = 0.0
        for lane in range(BATCH_SIZE):
            _, h = cell.step(cell_params, cell.initial_carry(), inputs[0, lane])
            logits = readout.apply(state.parameters["readout"], h)
            error = jax.nn.softmax(logits) - jax.nn.one_hot(targets[0, lane], CLASSES)
            error = jax.lax.stop_gradient(error)
            total += state.parameters["readout"]["feedback"][:-1] @ error @ h
        return total / BATCH_SIZE

    expected = evaluated(jax.grad(sent), state.parameters["cell"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14),
        gradient["cell"],
        expected,
    )


def test_adaptive_feedback_approaches_the_weights_as_both_decay():
    readout, params = readout_of("adaptive")
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    params = {"cell": {}, "readout": params}
    state = optimizer.init(params)
    rng = np.random.default_rng(0)

    def apart():
        return np.linalg.norm(params["readout"]["weights"] - params["readout"]["feedback"])

    before = apart()
    for _ in range(20):
        h = jnp.asarray(rng.standard_normal(HIDDEN_SIZE))
        own = jax.grad(lambda p, h=h: jnp.sum(jnp.sin(readout.apply(p, h))))(params["readout"])
        updates, state = optimizer.update({"cell": {}, "readout": own}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(apart(), before * 0.95**20, rtol=1e-9)


def test_an_unknown_feedback_is_refused():
    with pytest.raises(ValueError, match="symmetric, random or adaptive, got 'none'"):
        readouts.linear(**SIZES, feedback="none")
