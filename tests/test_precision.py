"""Cells, readouts and optimizers in another precision than JAX's own."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kfrtrl_jax as kf
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import train
from kfrtrl_jax.training.loading import load
from tests.helpers.interpreter import evaluated, traced
from tests.helpers.nights import some
from tests.training.small import records, small, text

CELLS = {
    "recurrent_highway": kf.cells.recurrent_highway,
    "lstm": kf.cells.lstm,
    "gru": kf.cells.gru,
    "min_gru": kf.cells.min_gru,
}


def learner(cell, dtype, estimator):
    readout = kf.readouts.linear(input_size=6, output_size=4)
    if dtype:
        cell, readout = kf.cells.in_dtype(cell, dtype), kf.readouts.in_dtype(readout, dtype)
    return kf.make_learner(
        cell,
        readout,
        estimator,
        kf.optimizers.in_float32(optax.sgd(1e-2)),
        batch_size=3,
        segment_length=2,
        update_every=1,
        example_input=jnp.zeros(4),
        loss=kf.losses.cross_entropy("bits"),
        check=False,
    )


def three_steps(name, dtype):
    """The losses of three steps and the state after them."""
    cell = CELLS[name](input_size=4, hidden_size=6)
    segment = kf.Batch(
        inputs=jax.random.normal(jax.random.key(1), (2, 3, 4)),
        targets=jnp.ones((2, 3), jnp.int32),
        reset=jnp.zeros((2, 3), bool),
    )
    learn = learner(cell, dtype, kf.estimators.rtrl())
    state, losses = evaluated(learn.init, jax.random.key(0)), []
    step = traced(learn.step, state, segment)
    for _ in range(3):
        new, metrics = step(state, segment)
        chex.assert_trees_all_equal_dtypes(state, new)
        state = new
        losses.append(metrics.loss)
    assert losses[0].dtype == (jnp.float32 if dtype else jnp.float64)
    return np.stack(losses), state


@functools.cache
def exact_losses(name):
    """In float64, which tests run in, the same network begins from the same numbers."""
    return three_steps(name, "")[0]


def floats(tree):
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return {str(x.dtype) for x in leaves}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "bfloat16") for name in some(CELLS)),
        *some(itertools.product(CELLS, ["float16", "float32"]), 3),
    ],
)
def test_a_learner_is_in_the_precision_of_its_cell(name, dtype):
    exact, (rough, state) = exact_losses(name), three_steps(name, dtype)
    assert floats(state.parameters) == floats(state.carry) == floats(state.influence) == {dtype}
    tolerance = {"bfloat16": 2e-2, "float16": 3e-3, "float32": 1e-6}[dtype]
    np.testing.assert_allclose(rough, exact, rtol=tolerance)
    assert not np.array_equal(exact[0], exact[-1])


def test_updates_smaller_than_the_digits_of_a_parameter_add_up():
    parameters = {"cell": jnp.ones(3, jnp.bfloat16), "readout": jnp.ones(2, jnp.float32)}
    gradients = jax.tree.map(jnp.ones_like, parameters)

    def after(optimizer, count):
        own, state = parameters, optimizer.init(parameters)
        for _ in range(count):
            updates, state = optimizer.update(gradients, state, own)
            own = optax.apply_updates(own, updates)
        return own, state

    alone, _ = after(optax.sgd(1e-3), 100)
    assert float(alone["cell"][0]) == 1.0
    together, state = after(kf.optimizers.in_float32(optax.sgd(1e-3)), 100)
    np.testing.assert_allclose(state.parameters["cell"], 0.9, rtol=1e-5)
    assert together["cell"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(together["cell"], state.parameters["cell"].astype(jnp.bfloat16))
    # With digits enough it changes nothing.
    np.testing.assert_array_equal(together["readout"], alone["readout"])
    with pytest.raises(ValueError, match="in_float32 needs the parameters"):
        kf.optimizers.in_float32(optax.sgd(1e-3)).update(gradients, state)


def test_what_has_no_such_precision_is_refused_by_name(tmp_path):
    turning = kf.cells.from_function(
        lambda params, carry, x: (params * carry + x, carry.real),
        lambda key: jnp.full(3, 0.9j),
        jnp.zeros(3, complex),
    )
    assert kf.cells.in_dtype(turning, "float32").initial_carry().dtype == jnp.complex64
    with pytest.raises(ValueError, match="complex numbers have no bfloat16"):
        kf.cells.in_dtype(turning, "bfloat16").initial_carry()
    with pytest.raises(ValueError, match=r"a dtype is bfloat16, .*, got 'int8'"):
        kf.readouts.in_dtype(kf.readouts.linear(input_size=2, output_size=2), "int8")
    with (
        jax.enable_x64(False),
        pytest.raises(ConfigError, match=r"config\.dtype: float64 needs JAX_ENABLE_X64=1"),
    ):
        train.train(small({"dtype": "float64"}), tmp_path)


def test_a_run_in_bfloat16_is_continued_averaged_and_loaded(tmp_path):
    changes = {
        **text(tmp_path / "data"),
        "dtype": "bfloat16",
        "segment_length": 2,
        "optimizer.ema_decay": 0.9,
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.train(small(changes), whole)
    for steps in (20, 60):
        train.train(small({**changes, "num_steps": steps, "checkpoint_every": 20}), parts)
    assert [line["loss"] for line in records(whole)] == [line["loss"] for line in records(parts)]
    first, last = records(whole)[0]["loss"], records(whole)[-1]["loss"]
    assert last < first
    loaded = load(parts)
    assert floats(loaded.parameters) == {"bfloat16"}
