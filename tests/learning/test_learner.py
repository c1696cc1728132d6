import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfrtrl_jax import estimators
from kfrtrl_jax.base import Batch
from kfrtrl_jax.credit import dni
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.learning import predict
from tests.helpers.interpreter import evaluated, traced
from tests.helpers.learners import learner_of, segments
from tests.helpers.nights import some
from tests.trajectories import BATCH_SIZE, READOUT, SMALL_CELLS, flat, sequence

STEPS = 12


def loss_of_sequence(cell, parameters, batches):
    """The sum over steps of the mean loss over lanes, by a scan that knows nothing of learners."""
    fresh = jax.tree.map(
        lambda c: jnp.broadcast_to(c, (BATCH_SIZE, *c.shape)), cell.initial_carry()
    )

    def step(carry, batch):
        carry = jax.tree.map(
            lambda a, b: jnp.where(batch.reset.reshape(-1, *[1] * (a.ndim - 1)), b, a), carry, fresh
        )
        carry, logits = jax.vmap(lambda c, x: predict(cell, READOUT, parameters, c, x))(
            carry, batch.inputs
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return carry, jnp.mean(losses)

    return jnp.sum(jax.lax.scan(step, fresh, batches)[1])


FORMS = [(1, "exact"), (3, "exact"), (1, "estimated")]


@pytest.mark.parametrize(
    ("cell", "length", "immediate"),
    [
        *((cell, 1, "exact") for cell in some(SMALL_CELLS)),
        *(("lstm", *form) for form in FORMS[1:]),
        ("deep_recurrent_highway", 1, "estimated"),
    ],
)
def test_rtrl_equals_backpropagation_through_the_whole_past(cell, length, immediate):
    """The gradients of all segments, with fixed parameters, add up to that of full BPTT."""
    cell = SMALL_CELLS[cell]
    learner = learner_of(cell, estimators.rtrl(), segment_length=length, immediate=immediate)
    batches = Batch(*sequence(STEPS))
    state = evaluated(learner.init, jax.random.key(0))

    def accumulate(state, batches):
        def one(state, segment):
            gradient, state, losses = learner.gradient(state, segment)
            return state, (gradient, losses)

        state, (gradients, losses) = jax.lax.scan(one, state, segments(batches, length))
        return jax.tree.map(lambda g: jnp.sum(g, axis=0) * length, gradients), losses

    gradient, losses = evaluated(accumulate, state, batches)
    value, exact = evaluated(
        jax.value_and_grad(lambda p: loss_of_sequence(cell, p, batches)), state.parameters
    )
    np.testing.assert_allclose(jnp.sum(losses), value / np.log(2), rtol=1e-12)  # in bits
    assert jnp.linalg.norm(flat(exact)) > 0.1
    chex.assert_trees_all_close(gradient, exact, rtol=1e-7, atol=1e-10)


def test_truncated_equals_backpropagation_inside_the_segment():
    cell = SMALL_CELLS["gru"]
    learner = learner_of(cell, estimators.truncated(), segment_length=4)
    batches = Batch(*sequence(8))
    state = evaluated(learner.init, jax.random.key(0))
    first, second = (jax.tree.map(lambda x, i=i: x[i], segments(batches, 4)) for i in (0, 1))
    run = traced(learner.gradient, state, first)
    _, state, _ = run(state, first)
    gradient, _, _ = run(state, second)

    def loss(parameters):
        carry, result = state.carry, 0.0
        for t in range(4):
            carry = jax.tree.map(
                lambda a, r=second.reset[t]: jnp.where(r[:, None], jnp.zeros_like(a), a), carry
            )
            carry, logits = jax.vmap(lambda c, x: predict(cell, READOUT, parameters, c, x))(
                carry, second.inputs[t]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, second.targets[t])
            result += jnp.mean(losses) / 4
        return result

    exact = evaluated(jax.grad(loss), state.parameters)
    chex.assert_trees_all_close(gradient, exact, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("length", "immediate"), some(FORMS))  # segments: test_segments
def test_kf_rtrl_gradient_is_unbiased(length, immediate):
    """The mean over keys of the gradient of the last segment is RTRL's, in either form."""
    cell = SMALL_CELLS["recurrent_highway"]
    batches = Batch(*sequence(6))

    def last_gradient(estimator):
        learner = learner_of(cell, estimator, segment_length=length, immediate=immediate)
        start = evaluated(learner.init, jax.random.key(0))

        def one(state, segment):
            gradient, state, _ = learner.gradient(state, segment)
            return state, gradient

        def last(key):
            state = start._replace(key=key)
            _, gradients = jax.lax.scan(one, state, segments(batches, length))
            return flat(jax.tree.map(lambda g: g[-1], gradients))

        return last

    exact = evaluated(last_gradient(estimators.rtrl()), jax.random.key(1))
    draws = jax.jit(jax.vmap(last_gradient(estimators.kf_rtrl())))(
        jax.random.split(jax.random.key(2), 20_000)
    )
    directions = jax.random.normal(jax.random.key(3), (exact.size, 6))
    projected = draws @ directions
    error = projected.std(axis=0) / np.sqrt(len(draws))
    z = (projected.mean(axis=0) - exact @ directions) / error
    assert jnp.max(jnp.abs(z)) < 4


def test_learning_lowers_the_loss():
    cell = SMALL_CELLS["lstm"]
    learner = learner_of(cell, estimators.kf_rtrl(), optax.adam(3e-3))
    inputs, _, _ = sequence(2000)
    # The target is whether the first input of the step before was positive.
    positive = (inputs[:, :, 0] > 0).astype(int)
    targets = jnp.concatenate([positive[:1], positive[:-1]])
    reset = jnp.zeros(targets.shape, bool)
    _, metrics = jax.jit(lambda s, b: jax.lax.scan(learner.step, s, b))(
        learner.init(jax.random.key(0)), segments(Batch(inputs, targets, reset), 1)
    )
    assert metrics.loss[-200:].mean() < 0.6 * metrics.loss[:100].mean()


def test_runs_of_several_seeds_vmap():
    cell = SMALL_CELLS["recurrent_highway"]
    learner = learner_of(cell, estimators.kf_rtrl())
    batches = segments(Batch(*sequence(5)), 1)

    def run(seed):
        return jax.lax.scan(learner.step, learner.init(jax.random.key(seed)), batches)[1].loss

    together = evaluated(jax.vmap(run), jnp.arange(3))
    np.testing.assert_allclose(together[1], evaluated(run, jnp.asarray(1)), rtol=1e-10)


def test_papers_form_refuses_an_output_that_needs_more_than_the_carry():
    cell = SMALL_CELLS["vanilla"]

    def step(params, h, x):
        h, _ = cell.step(params, h, x)
        return h, h * jnp.sum(x)

    with pytest.raises(UnsupportedCellError, match="function of its new carry alone"):
        learner_of(cell._replace(step=step), estimators.rtrl(), immediate="estimated")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"segment_length": 0}, "at least 1"),
        ({"immediate": "both"}, "exact"),
        ({"segment_length": 4, "update_every": 3}, "update_every must divide segment_length"),
        ({"segment_length": 4, "update_every": 0}, "update_every must divide segment_length"),
        ({"segment_length": 4, "window": 6}, "window must be a multiple of segment_length"),
        ({"segment_length": 4, "window": 2}, "window must be a multiple of segment_length"),
        ({"segment_length": 2, "immediate": "estimated"}, "needs segment_length=1"),
        ({"window": 2, "immediate": "estimated"}, "needs segment_length=1 and window=1"),
        ({"segment_length": 2, "update_every": 1, "credit": dni()}, "a credit closes a segment"),
        ({"window": 2, "credit": dni()}, "a credit closes a segment"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        learner_of(SMALL_CELLS["vanilla"], estimators.rtrl(), **kwargs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b._replace(inputs=b.inputs.astype(jnp.float32)), "must be float64.*got float32"),
        (
            lambda b: jax.tree.map(lambda x: x[:1], b),
            r"must be float64\[2, 2, 3\], got .*\[1, 2, 3\]",
        ),
        (lambda b: b._replace(reset=b.reset.astype(int)), r"segment.reset must be bool\[2, 2\]"),
        (lambda b: b._replace(inputs=(b.inputs,)), "must be like the example input"),
    ],
)
def test_a_segment_of_other_shapes_or_types_is_refused(change, message):
    learner = learner_of(SMALL_CELLS["vanilla"], estimators.rtrl(), segment_length=2)
    state = learner.init(jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        learner.step(state, change(Batch(*sequence(2))))
