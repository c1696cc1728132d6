"""Time steps one by one: without their axis, with targets after predictions, and as whole runs."""

import collections

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfrtrl_jax import cells, estimators, losses, readouts, tasks
from kfrtrl_jax._src.jax_internals import all_equations
from kfrtrl_jax.base import Batch
from kfrtrl_jax.credit import dni
from kfrtrl_jax.learning import make_learner, run
from tests.helpers.interpreter import evaluated, traced
from tests.helpers.learners import learner_of
from tests.trajectories import BATCH_SIZE, CLASSES, SMALL_CELLS, sequence

KEY = jax.random.key(0)
FORMS = {"exact": {}, "window": {"window": 3}, "estimated": {"immediate": "estimated"}}


def batches(steps):
    batch = Batch(*sequence(steps))
    return [jax.tree.map(lambda x, t=t: x[t], batch) for t in range(steps)]


def assert_close(got, want):
    def plain(x):
        typed = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if typed else x

    chex.assert_trees_all_close(
        *(jax.tree.map(plain, t) for t in (got, want)), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("form", FORMS)
def test_predict_and_update_are_a_step_in_two_parts(form):
    learner = learner_of(
        SMALL_CELLS["vanilla"], estimators.kf_rtrl(), optax.adam(1e-2), **FORMS[form]
    )
    one = two = evaluated(learner.init, KEY)
    stream = batches(5)
    step = traced(learner.step, one, stream[0])
    predict = traced(learner.predict, one, stream[0].inputs, stream[0].reset)
    pending = predict(one, stream[0].inputs, stream[0].reset)[1]
    update = traced(learner.update, one, pending, stream[0].targets)
    for batch in stream:
        one, metrics = step(one, batch)
        predictions, pending = predict(two, batch.inputs, batch.reset)
        two, same = update(two, pending, batch.targets)
        assert_close(predictions, metrics.predictions)
        assert_close(same, metrics)
        assert_close(two, one)
    assert metrics.loss.shape == ()
    assert metrics.losses.shape == (BATCH_SIZE,)
    assert metrics.predictions.shape == (BATCH_SIZE, CLASSES)


@pytest.mark.parametrize("form", FORMS)
def test_the_forward_pass_is_made_once(form):
    """The cell's nonlinearity is evaluated in `predict` as often as in `step`, in `update` never."""
    learner = learner_of(SMALL_CELLS["vanilla"], estimators.kf_rtrl(), **FORMS[form])
    batch = batches(1)[0]
    state = jax.eval_shape(learner.init, KEY)
    pending = jax.eval_shape(learner.predict, state, batch.inputs)[1]

    def count(function, *arguments):
        jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
        return collections.Counter(e.primitive.name for e in all_equations(jaxpr))["tanh"]

    assert count(learner.update, state, pending, batch.targets) == 0
    assert count(learner.predict, state, batch.inputs) == count(learner.step, state, batch) > 0


def test_the_state_may_be_donated_while_a_prediction_is_pending():
    learner = learner_of(SMALL_CELLS["vanilla"], estimators.truncated())
    state = jax.jit(learner.init)(KEY)
    batch = batches(1)[0]
    expected, _ = evaluated(learner.step, state, batch)
    _, pending = jax.jit(learner.predict)(state, batch.inputs)
    new, _ = jax.jit(learner.update, donate_argnums=0)(state, pending, batch.targets)
    assert all(x.is_deleted() for x in jax.tree.leaves(state.parameters))
    assert_close(new.parameters, expected.parameters)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"segment_length": 4, "update_every": 1},
            "segment_length is 4: use step, or make it with",
        ),
        ({"credit": dni()}, "predict and update do not take a credit"),
    ],
)
def test_what_has_no_single_steps_does_not_predict(kwargs, message):
    learner = learner_of(SMALL_CELLS["vanilla"], estimators.rtrl(), **kwargs)
    state = jax.eval_shape(learner.init, KEY)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(learner.predict, state, batches(1)[0].inputs)
    with pytest.raises(ValueError, match=message):
        learner.update(state, None, jnp.zeros(2, int))


def test_predict_and_update_refuse_other_shapes():
    learner = learner_of(SMALL_CELLS["vanilla"], estimators.rtrl())
    state = jax.eval_shape(learner.init, KEY)
    with pytest.raises(
        ValueError, match=r"must be float64\[2, 3\], got float64\[5, 3\]; .*batch_size is 2"
    ):
        jax.eval_shape(learner.predict, state, jnp.zeros((5, 3)))
    pending = jax.eval_shape(learner.predict, state, jnp.zeros((2, 3)))[1]
    with pytest.raises(ValueError, match=r"segment.targets must have the leading axes \[1, 2\]"):
        jax.eval_shape(learner.update, state, pending, jnp.zeros(5, int))
    with pytest.raises(ValueError, match="use apply_gradient"):
        learner.update(state, {"cell": 0}, jnp.zeros(2, int))


def test_a_step_without_its_axis_is_one_with_it_and_losses_are_in_their_unit():
    loss = losses.squared_error()  # reported without its factor of one half
    learner = learner_of(SMALL_CELLS["vanilla"], estimators.truncated(), loss=loss)
    state = evaluated(learner.init, KEY)
    batch = batches(1)[0]._replace(targets=jnp.ones((BATCH_SIZE, CLASSES)), reset=None)
    alone, metrics = evaluated(learner.step, state, batch)
    segment = jax.tree.map(lambda x: x[None], batch._replace(reset=jnp.zeros(BATCH_SIZE, bool)))
    inside, expected = evaluated(learner.step, state, segment)
    assert_close(alone, inside)
    assert_close(metrics, jax.tree.map(lambda x: x[0] if np.ndim(x) else x, expected))
    squares = np.mean((metrics.predictions - 1) ** 2, axis=1)
    np.testing.assert_allclose(metrics.losses, squares)
    np.testing.assert_allclose(metrics.loss, squares.mean())
    np.testing.assert_allclose(evaluated(learner.gradient, state, batch)[2], squares.mean())


def test_a_run_on_arrays_and_one_on_a_stream_of_batches_are_the_same():
    learner = learner_of(SMALL_CELLS["vanilla"], estimators.truncated())
    data = Batch(*sequence(4))
    whole, metrics = run(learner, data, key=KEY)
    half, first = run(learner, iter(batches(4)), steps=2, key=KEY)
    half, second = run(learner, batches(4)[2:], state=half)
    assert_close(half.learner, whole.learner)
    np.testing.assert_allclose(np.concatenate([first.loss, second.loss]), metrics.loss)
    assert metrics.weight.shape == (4,)
    assert metrics.predictions == metrics.losses == ()


def aligned(shape):
    """Zeros that begin on a multiple of 64 bytes, which JAX on a CPU reads in place."""
    memory = np.zeros(np.prod(shape) + 16, np.float32)
    start = (-memory.ctypes.data // 4) % 16
    return memory[start : start + np.prod(shape)].reshape(shape)


def test_a_buffer_may_be_filled_again_while_a_run_goes_on():
    steps, inputs = 60, np.random.default_rng(0).normal(size=(60, 1, 16)).astype(np.float32)
    learner = make_learner(
        cells.gru(input_size=16, hidden_size=32), readouts.linear(input_size=32, output_size=1),
        "rtrl", optax.sgd(0.01), batch_size=1, example_input=jnp.zeros(16, jnp.float32),
        loss=losses.squared_error(), check=False,
    )  # fmt: skip

    def filled():
        batch = Batch(aligned((1, 16)), aligned((1, 1)))
        for x in inputs:
            batch.inputs[:], batch.targets[:] = x, x[:, :1]
            yield batch
        batch.inputs[:] = np.nan

    _, want = run(learner, [Batch(x.copy(), x[:, :1].copy()) for x in inputs], key=KEY)
    _, got = run(learner, filled(), key=KEY)
    np.testing.assert_array_equal(got.loss, want.loss)
    whole = Batch(aligned(inputs.shape), aligned((steps, 1, 1)))
    whole.inputs[:], whole.targets[:] = inputs, inputs[..., :1]
    _, got = run(learner, whole, key=KEY)
    whole.inputs[:] = np.nan
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 4])
def test_a_task_observes_the_losses_that_count_alone(length):
    """Of 3 steps the last one counts; nothing is observed before the first of these is known."""
    answers = tasks.memory_chain(batch_size=2, length=3)
    task = answers._replace(
        init=lambda key: (answers.init(key), jnp.zeros((), int), jnp.zeros(())),
        observe=lambda state, loss: (state[0], state[1] + 1, state[2] + loss),
        sample=lambda state, key: (lambda own, batch: ((own, *state[1:]), batch))(
            *answers.sample(state[0], key)
        ),
    )
    learner = make_learner(
        cells.vanilla(input_size=task.input_size, hidden_size=4),
        readouts.linear(input_size=4, output_size=task.output_size), "truncated", optax.sgd(0.1),
        batch_size=2, example_input=task.example_input, loss=task.loss, segment_length=length,
    )  # fmt: skip
    state, metrics = run(learner, task, steps=16, key=KEY)
    counted = np.asarray(metrics.weight) > 0
    np.testing.assert_array_equal(counted, np.arange(16) % 3 == 2)
    counted[-length:] = False  # the last segment's losses are observed with the next segment
    _, observed, total = state.task
    assert observed == counted.sum()
    np.testing.assert_allclose(total, np.asarray(metrics.loss)[counted].sum(), rtol=1e-6)


def test_a_run_on_a_task_goes_on_where_it_ended():
    task = tasks.copy(batch_size=2, initial_length=2)
    cell = cells.vanilla(input_size=task.input_size, hidden_size=4)
    readout = readouts.linear(input_size=4, output_size=task.output_size)
    learner = make_learner(
        *task.around(cell, readout), "truncated", optax.sgd(0.1), batch_size=task.batch_size,
        example_input=task.example_input, loss=task.loss, segment_length=2,
    )  # fmt: skip
    whole, metrics = run(learner, task, steps=8, key=KEY)
    state, first = run(learner, task, steps=4, key=KEY)
    state, second = run(learner, task, steps=4, state=state)
    assert_close(state, whole)
    np.testing.assert_allclose(np.concatenate([first.loss, second.loss]), metrics.loss)
    assert metrics.gradient_norm.shape == (4,)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "needs a key to start from, or the state"),
        ({"key": KEY, "steps": 3}, "steps must be a multiple of segment_length=2, got 3"),
        ({"key": KEY, "steps": 6}, "data of 4 time steps must have as many as steps"),
    ],
)
def test_a_run_that_cannot_be_is_refused(kwargs, message):
    learner = learner_of(SMALL_CELLS["vanilla"], estimators.truncated(), segment_length=2)
    with pytest.raises(ValueError, match=message):
        run(learner, Batch(*sequence(4)), **kwargs)


@pytest.mark.parametrize("field", ["targets", "reset"])
def test_arrays_of_different_lengths_are_refused(field):
    learner = learner_of(SMALL_CELLS["vanilla"], estimators.truncated())
    data, longer = (Batch(*sequence(count)) for count in (4, 5))
    with pytest.raises(ValueError, match="the same number of time steps, got 4, 5"):
        run(learner, data._replace(**{field: getattr(longer, field)}), key=KEY)
