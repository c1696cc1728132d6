"""Optimizers and schedules by optax's names, clipping, and the average of the parameters."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfrtrl_jax import optimizers
from kfrtrl_jax._src import xla
from kfrtrl_jax._src.compositions import composed
from kfrtrl_jax._src.compositions.factories import KINDS
from kfrtrl_jax._src.compositions.notation import Written
from kfrtrl_jax._src.optimizers import REFUSED, average_in
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training.config import float_fields, make, resolve, shown
from tests.helpers.interpreter import traced
from tests.training.small import COPY

PARAMETERS = {
    "cell": {"w": jnp.arange(12.0).reshape(3, 4) - 5, "tau": jnp.float64(0.5)},
    "readout": {"weights": jnp.ones((4, 2))},
}
GRADIENT = jax.tree.map(lambda x: 0.1 * jnp.cos(x), PARAMETERS)
COSINE = {"name": "cosine_decay_schedule", "init_value": 1e-2, "decay_steps": 50}


def changed(overrides=None, **optimizer):
    return resolve({**COPY, **({"optimizer": optimizer} if optimizer else {})}, overrides)


def stepped(optimizer, count=3):
    """The parameters after each of some updates by one gradient, and the optimizer's state."""

    def step(parameters, state):
        updates, state = optimizer.update(GRADIENT, state, parameters)
        return optax.apply_updates(parameters, updates), state

    parameters, state, after = PARAMETERS, optimizer.init(PARAMETERS), []
    run = traced(step, parameters, state)
    for _ in range(count):
        parameters, state = run(parameters, state)
        after.append(parameters)
    return after, state


def assert_same(a, b, rtol=1e-12):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), a, b)


@pytest.mark.parametrize(
    ("own", "of_optax"),
    [
        ("lion(1e-2, b1=0.8)", optax.lion(1e-2, b1=0.8)),
        ("adamw(1e-2, weight_decay=0.3, nesterov=True)",
         optax.adamw(1e-2, weight_decay=0.3, nesterov=True)),
        ("sgd(1e-2, momentum=0.5)", optax.sgd(1e-2, 0.5)),
        ("muon(1e-2, adam_learning_rate=0.1, ns_steps=3)",
         optax.contrib.muon(1e-2, adam_learning_rate=0.1, ns_steps=3)),
        ("rmsprop(schedule=linear_schedule(0.1, 0, 2))",
         optax.rmsprop(optax.linear_schedule(0.1, 0.0, 2))),
    ],
)  # fmt: skip
def test_an_optimizer_is_that_of_optax(own, of_optax):
    made = make(changed({"optimizer": own, "optimizer.clip_norm": 0.0}), "optimizer")
    assert_same(stepped(made)[0], stepped(of_optax)[0])


def test_every_optimizer_of_optax_is_known_or_refused_with_a_reason():
    found = {
        name
        for module in (optax, optax.contrib)
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and "learning_rate" in inspect.signature(function).parameters
        and not name.startswith(("_", "scale_by_"))
    }
    assert found <= {*optimizers.OPTIMIZERS, *REFUSED}


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_all_floats_of_an_optimizer_may_vary_inside_one_program(name):
    config = changed(name=name, learning_rate=1e-3, ema_decay=0.9)
    paths = [path for path in float_fields(config) if path.startswith("optimizer.")]
    values = {path: config.optimizer[path.partition(".")[2]] for path in paths}
    assert {"optimizer.learning_rate", "optimizer.clip_norm", "optimizer.ema_decay"} <= {*values}

    def update(floats):
        optimizer = make(config, "optimizer", floats)
        return optimizer.update(GRADIENT, optimizer.init(PARAMETERS), PARAMETERS)[0]

    shapes = jax.eval_shape(update, jax.tree.map(jnp.asarray, values))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, PARAMETERS)


SCHEDULES = {
    "constant_schedule(0.1)": optax.constant_schedule(0.1),
    "cosine_decay_schedule(0.1, 10, alpha=0.2)": optax.cosine_decay_schedule(0.1, 10, 0.2),
    "exponential_decay(0.1, 4, 0.5, staircase=True)":
        optax.exponential_decay(0.1, 4, 0.5, staircase=True),
    "warmup_cosine_decay_schedule(0, 0.1, 3, 10)":
        optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 10),
    "join_schedules([constant_schedule(0.1), constant_schedule(0.01)], [5])":
        lambda count: 0.1 if count < 5 else 0.01,
    "optax:piecewise_constant_schedule(0.3)": optax.constant_schedule(0.3),
}  # fmt: skip


@pytest.mark.parametrize("text", SCHEDULES)
def test_a_schedule_is_that_of_optax(text):
    config = changed({"optimizer.schedule": text})
    assert config.optimizer.learning_rate is None
    section = config.optimizer.schedule.to_dict()
    schedule = composed.make(KINDS["schedule"], section, "config.optimizer.schedule")
    rates = [float(schedule(count)) for count in range(12)]
    np.testing.assert_allclose(rates, [SCHEDULES[text](c) for c in range(12)], rtol=1e-6)
    assert resolve(config.to_dict()) == config
    assert config == changed({"optimizer": shown(config, "optimizer")})


def test_a_schedule_and_a_learning_rate_displace_each_other_on_the_command_line():
    scheduled = changed(
        {
            "optimizer.schedule.name": Written("cosine_decay_schedule"),
            "optimizer.schedule.init_value": Written("1e-2"),
            "optimizer.schedule.decay_steps": Written("50"),
        }
    )
    assert scheduled.optimizer.learning_rate is None
    assert scheduled.optimizer.schedule.to_dict() == {**COSINE, "alpha": 0.0, "exponent": 1.0}
    assert {"optimizer.schedule.init_value"} <= float_fields(scheduled)
    plain = resolve(scheduled, {"optimizer.learning_rate": Written("0.5")})
    assert (plain.optimizer.learning_rate, plain.optimizer.schedule) == (0.5, None)
    assert changed({"optimizer.schedule": Written("None")}) == changed()
    by_default = changed({"optimizer": "prodigy"})
    assert by_default.optimizer.learning_rate == 1.0
    assert changed({"optimizer": "prodigy", "optimizer.schedule": COSINE}).optimizer.schedule


RATE, SCHEDULE = "config.optimizer.learning_rate", "config.optimizer.schedule"
MESSAGES = [
    ({"optimizer": {"name": "adam"}}, f"{RATE} is missing (a number), or {SCHEDULE} in its place"),
    ({"optimizer": {"name": "adam", "learning_rate": 1, "schedule": COSINE}},
     f"{SCHEDULE} is in the place of {RATE}: give one of them"),
    ({"optimizer.schedule": COSINE, "optimizer.learning_rate": 0.1},
     f"{SCHEDULE} is in the place of {RATE}: give one of them"),
    ({"optimizer.schedule.name": "cosine_decay_schedul"}, f"{SCHEDULE}.name: there is no schedule "
     "'cosine_decay_schedul'; did you mean cosine_decay_schedule"),
    ({"optimizer.schedule.decay_steps": 3}, f"{SCHEDULE}.name is missing; one of constant_schedule, "),
    ({"optimizer.schedule": {**COSINE, "decay_step": 3}}, f"{SCHEDULE}.decay_step is not a field of "
     "schedule cosine_decay_schedule; did you mean decay_steps?"),
    ({"optimizer.schedule": "cosine_decay_schedule(0.1, 0)"}, f"{SCHEDULE}.decay_steps must be at "
     "least 1, got 0"),
    ({"optimizer.schedule": "cosine_decay_schedule(0.1, 1.5)"}, f"{SCHEDULE}.decay_steps must be an "
     "integer, got 1.5"),
    ({"optimizer.schedule": "constant_schedule(-1)"}, f"{SCHEDULE}.value must be at least 0, got -1"),
    ({"optimizer.schedule": "sgdr_schedule"}, f"{SCHEDULE}.name cannot be sgdr_schedule, which takes "),
    ({"optimizer.name": "lbfgs"}, "config.optimizer.name cannot be lbfgs, which asks for the loss"),
    ({"optimizer.name": "lionn"}, "config.optimizer.name: there is no optimizer 'lionn'; did you mean "
     "lion?"),
    ({"optimizer.clip": "cells"}, "config.optimizer.clip cannot be 'cells'; did you mean cell?"),
    ({"optimizer.ema_decay": 1}, "config.optimizer.ema_decay must be in [0, 1), got 1.0"),
    ({"optimizer": "rprop(0.1, eta_minus=2.0)"},
     "config.optimizer.eta_minus must be in (0, 1), got 2.0"),
    ({"optimizer.schedule": "exponential_decay(0.1, 4, 0)"},
     f"{SCHEDULE}.decay_rate must be more than 0, "),
    ({"optimizer.weight_decay": 0.1}, "config.optimizer.weight_decay is not a field of optimizer adam"),
    ({"optimizer.mu_dtype": "float8"}, "config.optimizer.mu_dtype must be one of bfloat16, float32, "),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), MESSAGES)
def test_a_refusal_is_one_line_that_names_the_field(overrides, message):
    with pytest.raises(ConfigError) as raised:
        resolve(COPY, overrides)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_defaults_of_earlier_versions_stay_those_of_their_runs():
    earlier = {
        "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
        "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-4},
        "sgd": {"momentum": 0.0},
        "rmsprop": {"decay": 0.9, "eps": 1e-8},
    }
    for name, fields in earlier.items():
        stored = {"name": name, "learning_rate": 0.1, "clip_norm": 1.0, **fields}
        assert changed(**stored) == changed(name=name, learning_rate=0.1)


def test_boundaries_that_do_not_fit_are_refused():
    config = changed({"optimizer.schedule": "join_schedules([constant_schedule(1)] * 2, [])"})
    with pytest.raises(ConfigError, match=r"config\.optimizer\.schedule: .* one boundary between"):
        make(config, "optimizer")
    config = changed({"optimizer.schedule": "join_schedules([constant_schedule(1)] * 2, [-3])"})
    with pytest.raises(ConfigError, match=r"ascending from 1, .* the boundaries \[-3\]"):
        make(config, "optimizer")


@pytest.mark.parametrize("start", [0.0, 0.6, 0.5])
def test_parts_of_a_cycle_that_are_not_in_order_are_refused(start):
    config = changed(
        {
            "optimizer.schedule": f"linear_onecycle_schedule(9, 0.1, pct_start={start}, pct_final=0.5)"
        }
    )
    with pytest.raises(ConfigError, match=rf"0 < pct_start < pct_final, got {start} and 0\.5"):
        make(config, "optimizer")


@pytest.mark.parametrize("clip", ["cell", "all"])
def test_clipping_scales_the_cell_or_all(clip):
    config = changed(name="sgd", learning_rate=1.0, clip_norm=0.25, clip=clip)
    (parameters,), _ = stepped(make(config, "optimizer"), count=1)
    step = jax.tree.map(lambda old, new: old - new, PARAMETERS, parameters)
    clipped, whole = (step, GRADIENT) if clip == "all" else (step["cell"], GRADIENT["cell"])
    factor = 0.25 / optax.tree.norm(whole)
    assert factor < 1
    assert_same(clipped, jax.tree.map(lambda g: g * factor, whole), rtol=1e-9)
    if clip == "cell":
        assert_same(step["readout"], GRADIENT["readout"], rtol=1e-9)


@pytest.mark.parametrize("size", [400.0, 1e-4])
def test_the_norm_of_numbers_in_float16_does_not_leave_its_range(size):
    gradient = {"cell": {"w": jnp.full(4, size / 2, jnp.float16)}, "readout": jnp.zeros(1)}
    np.testing.assert_allclose(xla.norm_of_tree(gradient), size, rtol=1e-2)
    clipped, _ = optimizers.clip_all(0.5 * size).update(gradient, optax.EmptyState())
    assert clipped["cell"]["w"].dtype == jnp.float16
    np.testing.assert_allclose(clipped["cell"]["w"], size / 4, rtol=1e-2)


def test_the_average_weighs_the_parameters_after_each_update():
    optimizer = make(changed({"optimizer.ema_decay": 0.8}), "optimizer")
    assert_same(average_in(optimizer.init(PARAMETERS)), PARAMETERS)
    after, state = stepped(optimizer, count=4)
    weights = 0.8 ** np.arange(3, -1, -1)
    expected = jax.tree.map(lambda *xs: np.average(xs, axis=0, weights=weights), *after)
    assert_same(average_in(state), expected)
    assert average_in(optax.adam(0.1).init(PARAMETERS)) is None
    with pytest.raises(ValueError, match="average_parameters needs the parameters"):
        optimizers.average_parameters(0.5).update(GRADIENT, state[-1])


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9999, 0.999999, 1 - 1e-12])
@pytest.mark.parametrize("varies", [False, True])
def test_an_average_in_single_precision_weighs_few_updates_by_any_decay(decay, varies):
    values = jnp.asarray([3.0, 1.0, 5.0], jnp.float32)
    given = jnp.asarray(decay, jnp.float32) if varies else decay
    with jax.enable_x64(False):
        average = optimizers.average_parameters(given)
        start = jnp.float32(100.0)
        state = average.init(start)
        for value in values:
            _, state = average.update(value - start, state, start)
    weights = float(given) ** np.arange(2, -1, -1)
    np.testing.assert_allclose(average_in(state), np.average(values, weights=weights), rtol=3e-6)


@pytest.mark.parametrize("decay", [1, 1.5, -0.5, float("nan")])
def test_an_average_of_no_decay_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got "):
        optimizers.average_parameters(decay)
