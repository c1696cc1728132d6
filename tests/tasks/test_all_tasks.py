"""Properties of every task whose sequences are generated."""

import functools
import importlib
import inspect
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from kfrtrl_jax import tasks
from kfrtrl_jax._src.errors import DataError
from kfrtrl_jax.base import Cell, Readout
from kfrtrl_jax.training import config
from tests.helpers.streams import scanned

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# Those that read files, and the problem of control, which is no task by itself.
OTHERS = {"text", "penn_treebank", "control"}
GENERATED = [name for name in tasks.TASKS if name not in OTHERS]
# Arguments for short sequences, of which a short stream has many.
SHORT = {
    "adding": {"length": 6},
    "copy_fixed": {"symbols": 3, "alphabet": 3, "delay": 3},
    "t_maze": {"corridor": 3},
    "memory_chain": {"length": 3},
}
# By how much of itself the chance loss may differ from that of the best constant prediction, besides
# the error bar of a short stream; that of `copy` is of a uniform guess.
TOLERANCES = {"copy": 0.15}
STEPS, LANES = 600, 16


def made(name, **kwargs):
    try:
        return tasks.TASKS[name](**{"batch_size": LANES, **kwargs})
    except DataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", GENERATED)
def test_its_loss_has_a_unit(name):
    assert made(name).loss.unit in ("bits", "bits/char", "mean square", "mean square TD error")


@functools.cache
def streams(name):
    """A task of short sequences and its batches for two seeds, [2, steps, B, ...]."""
    task = made(name, **SHORT.get(name, {}))
    run = jax.jit(jax.vmap(lambda key: scanned(task, key, STEPS)))
    return task, run(jax.random.split(jax.random.key(0)))


def constant_prediction(task):
    """c [output_size] -> a prediction that does not depend on the input."""
    cell = Cell(lambda key: (), lambda: (), lambda params, carry, x: ((), ()))
    cell, readout = task.around(cell, Readout(lambda key: (), lambda c, output: c))

    def predict(c):
        return readout.apply(c, cell.step((), (), task.example_input)[1])

    return predict


def over_steps(function):
    """Maps a function of one lane at one step over two seeds, steps and lanes."""
    return jax.vmap(jax.vmap(jax.vmap(function)))


@pytest.mark.parametrize("name", GENERATED)
def test_state_and_batch_keep_their_types(name):
    for x64 in (False, True):
        with jax.enable_x64(x64):
            task = made(name)
            for make_key in (jax.random.key, jax.random.PRNGKey):
                key = make_key(0)
                state = jax.eval_shape(task.init, key)
                loss = jnp.asarray(task.chance_loss)
                new, batch = jax.eval_shape(
                    lambda *xs, task=task: tasks.draw(task, *xs), state, key, loss
                )
                types = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]
                assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(new)] == types
                assert batch.reset.dtype == bool
                for leaf in jax.tree.leaves(batch):
                    assert leaf.shape[0] == LANES
                # One lane's input, and floats of the precision that is in force.
                example = jax.tree.map(lambda x: (jnp.shape(x), x.dtype), task.example_input)
                assert jax.tree.map(lambda x: (x.shape[1:], x.dtype), batch.inputs) == example
                floats = {x.dtype for x in jax.tree.leaves(batch) if x.dtype.kind == "f"}
                assert floats <= {jnp.zeros(()).dtype}


@pytest.mark.parametrize("name", GENERATED)
def test_seeds_and_lanes_differ_and_start_with_a_sequence(name):
    _, batch = streams(name)
    chex.assert_tree_shape_prefix(batch, (2, STEPS, LANES))
    chex.assert_tree_all_finite(batch.inputs)
    assert batch.reset[:, 0].all()
    assert not batch.reset.all()
    flat = np.concatenate(
        [
            np.reshape(leaf, (2, STEPS, LANES, -1))
            for leaf in jax.tree.leaves((batch.inputs, batch.targets))
        ],
        axis=-1,
    )
    lanes = flat.swapaxes(1, 2).reshape(2 * LANES, -1)
    assert len(np.unique(lanes, axis=0)) == 2 * LANES


@pytest.mark.parametrize("name", GENERATED)
def test_chance_loss_is_that_of_the_best_constant_prediction(name):
    task, batch = streams(name)
    predict = constant_prediction(task)
    weight = jnp.ones(batch.reset.shape) if batch.weight is None else batch.weight
    assert (weight >= 0).all()
    assert (weight > 0).any()

    def of_lanes(function, c):
        """The weighted sum over each lane's steps, divided by the mean of the lanes' weights."""
        each = over_steps(lambda target: function(predict(c), target))(batch.targets)
        summed = jnp.sum(jnp.where(weight > 0, weight * each, 0), axis=1).ravel()
        return summed * (summed.size / jnp.sum(weight))

    loss = jax.jit(lambda c: task.loss.scale * of_lanes(task.loss.function, c))
    best = optimize.minimize(lambda c: loss(c).mean(), np.zeros(task.output_size))
    losses = loss(best.x)
    error = jnp.std(losses) / np.sqrt(losses.size)
    rtol = TOLERANCES.get(name, 0.01)
    np.testing.assert_allclose(task.chance_loss, best.fun, rtol=rtol, atol=4 * error)
    # The error bar is small enough for the test to fail.
    assert error < 0.1 * best.fun
    if task.score is not None:
        scores = of_lanes(task.score.function, jnp.zeros(task.output_size))
        assert jnp.isfinite(scores).all()
        assert task.score.name
    assert task.loss.unit


@pytest.mark.parametrize("name", GENERATED)
def test_impossible_sizes_are_refused(name):
    parameters = inspect.signature(tasks.TASKS[name]).parameters.values()
    sizes = [p.name for p in parameters if p.annotation == "int"]
    assert "batch_size" in sizes
    made(name)
    for size in sizes:
        with pytest.raises(ValueError, match="must"):
            made(name, **{size: -1})


@pytest.mark.parametrize("name", [name for name in GENERATED if (CONFIGS / f"{name}.py").exists()])
def test_configs_are_complete_and_say_their_command(name):
    module = importlib.import_module(f"configs.{name}")
    resolved = config.resolve(module.get_config())
    assert resolved.task.name == name
    made(**resolved.task)
    assert name == "copy" or f"--config=configs/{name}.py" in module.__doc__.splitlines()[0]
