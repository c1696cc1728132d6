"""Factories under names of their own, in configs and in text."""

import jax
import optax
import pytest

from kfrtrl_jax import base, cells, estimators, register, tasks
from kfrtrl_jax._src.compositions.factories import REGISTERED
from kfrtrl_jax.base import InfluenceEstimator
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training.config import float_fields, make, resolve
from kfrtrl_jax.training.train import train
from tests.learning.test_doors import made
from tests.training.small import COPY, small
from tests.trajectories import INPUT_SIZE


@pytest.fixture(autouse=True)
def forgotten():
    yield
    for names in REGISTERED.values():
        names.clear()


def my_cell(input_size: int, units: int):
    return cells.vanilla(input_size=input_size, hidden_size=units)


def my_estimator(inner: InfluenceEstimator, copies: int = 2):
    return estimators.average(inner, copies=copies)


def my_task(batch_size: int):
    return tasks.copy(batch_size=batch_size)


def my_optimizer(learning_rate: float):
    return optax.sgd(learning_rate)


def test_configs_and_text_find_what_is_registered():
    register.cell("my_cell", my_cell)
    register.estimator("my_estimator", my_estimator)
    register.optimizer("my_optimizer", my_optimizer)
    register.task("my_task", my_task)
    sections = {
        "cell": "my_cell(units=3)",
        "estimator": "average(my_estimator(kf_rtrl), copies=4)",
        "optimizer": {"name": "my_optimizer", "learning_rate": 0.5},
        "task": "my_task(batch_size=2)",
    }
    config = resolve({**COPY, **sections})
    cell = make(config, "cell", input_size=INPUT_SIZE)
    assert jax.tree.leaves(cell.initial_carry())[0].shape == (3,)
    assert isinstance(make(config, "estimator"), InfluenceEstimator)
    assert make(config, "task").batch_size == 2
    # Its floats are constants of a program, as those of any factory of a user.
    assert not any(path.startswith("optimizer") for path in float_fields(config))
    assert made(estimator="my_estimator(rtrl)").linearizer.structure.state_size == 5


def dotted_cell(input_size: int, units: int):
    """Has the parameters {"a": {"b": ...}, "a.b": ...}, which a checkpoint cannot tell apart."""
    inner = cells.vanilla(input_size=input_size, hidden_size=units)

    def init(key):
        return {"a": {"b": inner.init(key)}, "a.b": inner.init(key)}

    def step(params, carry, x):
        return inner.step(jax.tree.map(jax.numpy.add, params["a"]["b"], params["a.b"]), carry, x)

    return base.Cell(init, inner.initial_carry, step)


def test_a_run_that_no_checkpoint_could_hold_does_not_begin(tmp_path):
    register.cell("dotted", dotted_cell)
    config = small({"cell": "dotted(units=3)", "estimator": "rtrl"})
    with pytest.raises(
        ConfigError, match=r"two arrays have the name .*a\.b\.\w+, .* rename an entry"
    ):
        train(config, tmp_path)
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize(
    ("kind", "name", "factory", "message"),
    [
        ("cell", "lstm", my_cell, "there is a cell lstm already: register yours by another name"),
        ("cell", "kf_rtrl", my_cell, "there is an estimator kf_rtrl already"),
        ("cell", "my-cell", my_cell, "the name of a cell must be an identifier, such as my_cell"),
        ("estimator", "None", my_estimator, "the name of an estimator must be an identifier"),
        ("estimator", "mine", estimators.rtrl(), "register a function that makes an estimator"),
        (
            "task",
            "mine",
            3,
            "register a function that makes a task, such as lambda: ..., got a int",
        ),
    ],
)
def test_a_name_or_factory_that_cannot_be_is_refused(kind, name, factory, message):
    with pytest.raises(ValueError, match=message):
        getattr(register, kind)(name, factory)
    register.cell("mine", my_cell)
    with pytest.raises(ValueError, match="there is a cell mine already"):
        register.cell("mine", cells.vanilla)
    with pytest.raises(ValueError, match="there is a cell mine already"):
        register.estimator("mine", my_cell)


def test_a_function_that_is_defined_again_takes_its_own_place():
    def defined(width):
        def mine(input_size: int):
            return cells.vanilla(input_size=input_size, hidden_size=width)

        return mine

    for width in (2, 3):
        register.cell("mine", defined(width))
    config = resolve({**COPY, "cell": "mine"})
    assert make(config, "cell", input_size=INPUT_SIZE).initial_carry().shape == (3,)


def test_what_is_not_registered_is_not_known():
    with pytest.raises(ConfigError, match="there is no estimator 'my_estimator'"):
        made(estimator="my_estimator(rtrl)")
