"""The trials of a sweep that run as one program have their float fields as its inputs.

A factory that looks at the value of one in Python says so in its `constants`.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

import kfrtrl_jax as kf
from kfrtrl_jax._src.compositions import composed
from kfrtrl_jax._src.compositions.factories import KINDS, REQUIRED, find
from kfrtrl_jax._src.compositions.factories import fields as fields_of
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.linearization import make_linearizer

# Of those that ask for more than sizes, and of what is inside a composition.
TEXTS = {
    "mixture": "mixture([kf_rtrl, uoro], [0.5, 0.5])",
    "warmup_cosine_decay_schedule": "warmup_cosine_decay_schedule(0.01, 0.1, 2, 4)",
    "join_schedules": "join_schedules([constant_schedule(0.1), linear_schedule(0.1, 0.2, 3)], [4])",
    "stack": "stack([vanilla(hidden_size=2), lru(hidden_size=2)])",
    "conv_lstm": "conv_lstm(size=[2, 2], channels=2)",
}
SIZES = {int: 2, float: 0.5}
NESTED = {"cell": "vanilla(hidden_size=2)", "estimator": "kf_rtrl"}


@functools.cache
def linearized():
    """A structure and a linearization, made before anything is traced."""
    cell = kf.cells.vanilla(input_size=3, hidden_size=4)
    params = cell.init(jax.random.key(0))
    linearizer = make_linearizer(cell, jnp.zeros(3), 2)
    linearization = linearizer.linearize(params, jnp.zeros((2, 4)), jnp.ones((2, 3)), jnp.ones(2))
    return linearizer.structure, linearization


def used_cell(cell):
    params, carry = cell.init(jax.random.key(0)), cell.initial_carry()
    return cell.step(params, carry, jnp.zeros(4))


def used_task(task):
    if isinstance(task, kf.control.Control):
        return task.settings
    return task.sample(task.init(jax.random.key(0)), jax.random.key(1))


def used_estimator(estimator):
    structure, linearization = linearized()
    state = estimator.push(estimator.init(structure), linearization, jax.random.key(0))
    return estimator.pull(state, jnp.ones((2, 4)))


USED = {
    "cell": used_cell,
    "task": used_task,
    "estimator": used_estimator,
    "credit": lambda credit: credit.share,
    "schedule": lambda schedule: schedule(jnp.ones((), jnp.int32)),
}


def section_of(kind, name):
    """A composition of this name with the least that it asks for."""
    if name in TEXTS:
        return composed.complete(kind, TEXTS[name], kind.word)
    asked = {
        key: SIZES[field.annotation] if field.nested is None else NESTED[field.nested.kind]
        for key, field in fields_of(kind, find(kind, name, kind.word)).items()
        if field.default is REQUIRED
    }
    return composed.complete(kind, {"name": name, **asked}, kind.word)


@pytest.mark.parametrize("word", USED)
def test_all_floats_may_vary_inside_one_program(word):
    kind, varied = KINDS[word], set()
    linearized()
    for name in kind.factories:
        section = section_of(kind, name)
        paths = [*composed.float_paths(kind, section, word)]
        if paths:
            supplied = {"input_size": 4} if word == "cell" else {}

            def use(floats, section=section, supplied=supplied):
                return USED[word](composed.make(kind, section, word, floats, **supplied))

            try:
                jax.eval_shape(use, {path: jnp.float32(0.5) for path in paths})
            except Exception as error:
                pytest.fail(f"{name}, of {paths}: {type(error).__name__}: {error}", pytrace=False)
            varied.add(name)
    assert varied


# Any number has a meaning there.
UNBOUNDED = {"forget_bias", "membrane_coupling", "coefficient", "value_weight", "entropy_weight"}
SUPPLIED = {"cell": {"input_size": 4}, "readout": {"input_size": 4, "output_size": 2}}


def takes(word, section, **changed):
    kind = KINDS[word]
    try:
        whole = composed.complete(kind, {**section, **changed}, word)
        composed.make(kind, whole, word, {}, **SUPPLIED.get(word, {}))
    except ConfigError as error:
        return not any(key in str(error) for key in changed)
    return True


@pytest.mark.parametrize("word", ["cell", "readout", "estimator", "credit", "task"])
def test_a_number_that_makes_no_sense_is_refused_by_name(word):
    for name in KINDS[word].factories:
        section = (
            section_of(KINDS[word], name) if name else composed.complete(KINDS[word], {}, word)
        )
        floats = {key for key, value in section.items() if isinstance(value, float)}
        taken = {key for key in floats if takes(word, section, **{key: -1.5})}
        assert taken <= UNBOUNDED, f"{word} {name} takes -1.5 for {taken - UNBOUNDED}"
