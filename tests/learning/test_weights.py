"""Losses that count more, less or not at all, against `jax.grad` of the weighted mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import credit, estimators, losses
from kfrtrl_jax.base import Batch
from tests.helpers.interpreter import evaluated
from tests.helpers.learners import learner_of, segments
from tests.trajectories import BATCH_SIZE, CLASSES, READOUT, SMALL_CELLS, sequence

STEPS, CELL = 4, SMALL_CELLS["vanilla"]
# One loss of the first half counts, none of the third step, all of the last.
WEIGHT = np.array([[0.0, 0.0], [0.0, 3.0], [0.0, 0.0], [0.5, 2.0]])
LOSSES = {"cross entropy": losses.cross_entropy(), "squared error": losses.squared_error()}


def batches_of(kind, weight=WEIGHT):
    """A batch [T, B] whose targets are not finite where they do not count."""
    inputs, targets, reset = sequence(STEPS)
    if kind == "squared error":
        targets = jax.random.normal(jax.random.key(3), (STEPS, BATCH_SIZE, CLASSES))
        if weight is not None:
            targets = jnp.where(weight[..., None] == 0, jnp.nan, targets)
    return Batch(inputs, targets, reset, None if weight is None else jnp.asarray(weight))


def expected(parameters, kind, interval):
    """The gradient of the weighted mean over an interval, through all steps since the start."""
    batches = jax.tree.map(np.asarray, batches_of(kind))

    def weighted_mean(parameters):
        total = 0.0
        for lane in range(BATCH_SIZE):
            carry = CELL.initial_carry()
            for t in range(max(interval) + 1):
                if batches.reset[t, lane]:
                    carry = CELL.initial_carry()
                carry, output = CELL.step(parameters["cell"], carry, batches.inputs[t, lane])
                if t in interval and WEIGHT[t, lane]:
                    prediction = READOUT.apply(parameters["readout"], output)
                    loss = LOSSES[kind].function(prediction, batches.targets[t, lane])
                    total += WEIGHT[t, lane] * loss
        return total / WEIGHT[list(interval)].sum()

    return evaluated(jax.grad(weighted_mean), parameters)


def assert_close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, want)


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_are_those_of_the_weighted_mean(kind):
    lengths = {"segment_length": 4, "update_every": 2}
    learner = learner_of(CELL, estimators.rtrl(), loss=LOSSES[kind], **lengths)
    state = evaluated(learner.init, jax.random.key(0))
    gradients, _, loss = evaluated(learner.gradient, state, batches_of(kind))
    for update, interval in enumerate([range(2), range(2, 4)]):
        got = jax.tree.map(lambda g, update=update: g[update], gradients)
        assert_close(got, expected(state.parameters, kind, interval))
    assert np.isfinite(loss).all()
    np.testing.assert_array_equal(loss[[0, 2]], 0)


@pytest.mark.parametrize(
    "form",
    [
        {"immediate": "estimated"},
        {"credit": credit.dni(share=0.5)},
        {},
    ],
    ids=["estimated", "credit", "exact"],
)
def test_steps_without_weight_have_no_gradient_and_no_nan(form):
    learner = learner_of(CELL, estimators.rtrl(), loss=LOSSES["squared error"], **form)
    state = evaluated(learner.init, jax.random.key(0))
    for batch in zip(*map(lambda x: list(segments(x, 1)), batches_of("squared error"))):
        segment = Batch(*batch)
        gradient, state, _ = evaluated(learner.gradient, state, segment)
        leaves = jax.tree.leaves(gradient)
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        if "credit" not in form:
            # A credit is nothing at first, but learns from the steps that count.
            assert any(np.any(leaf) for leaf in leaves) == bool(segment.weight.any())


def test_equal_weights_change_nothing_and_metrics_tell_what_counted():
    learner = learner_of(CELL, estimators.rtrl(), loss=LOSSES["squared error"], segment_length=4)
    state = evaluated(learner.init, jax.random.key(0))
    plain = batches_of("squared error", None)
    without = evaluated(learner.step, state, plain)
    with_ones = evaluated(learner.step, state, plain._replace(weight=jnp.full((4, 2), 2.0)))
    assert_close(with_ones[0].parameters, without[0].parameters)
    np.testing.assert_array_equal(without[1].weight, 2)
    np.testing.assert_array_equal(with_ones[1].weight, 4)
    assert without[1].predictions.shape == (4, BATCH_SIZE, CLASSES)
    # The mean square, without the half of the loss that is differentiated.
    errors = np.square(without[1].predictions - plain.targets)
    np.testing.assert_allclose(without[1].loss, errors.mean(axis=(1, 2)), rtol=1e-12)


@pytest.mark.parametrize("label", [-1, -100, CLASSES])
def test_a_label_of_no_class_is_no_loss_that_could_be_learned_from(label):
    assert np.isnan(LOSSES["cross entropy"].function(jnp.zeros(CLASSES), jnp.asarray(label)))


def test_a_label_of_no_class_may_stand_where_the_weight_is_0():
    learner = learner_of(CELL, estimators.rtrl(), loss=LOSSES["cross entropy"], segment_length=4)
    state = evaluated(learner.init, jax.random.key(0))
    batch = batches_of("cross entropy")
    marked = batch._replace(targets=jnp.where(batch.weight == 0, -1, batch.targets))
    gradients = [evaluated(learner.gradient, state, own)[0] for own in (batch, marked)]
    assert_close(*gradients)
