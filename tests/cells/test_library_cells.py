"""Cells of the library with a structure of their own, against JAX's derivatives of their steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax._src.estimators.snap import reachable
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.linearization import make_linearizer
from kfrtrl_jax.studies import fidelity
from tests.estimators import monte_carlo
from tests.helpers.interpreter import evaluated
from tests.helpers.nights import NIGHT, some
from tests.linearization.references import (
    assert_learned,
    assert_linearized,
    derivatives,
    learner_of,
    random_point,
    unrolled_gradient,
)
from tests.trajectories import INPUT_SIZE

SIZES = {"input_size": INPUT_SIZE, "hidden_size": 4}
# With the number of state variables that a weight reaches, None for all of them.
CELLS = {
    "rtu": (cells.rtu(**SIZES), 2),
    "rtu_tanh": (cells.rtu(**SIZES, activation="tanh"), 2),
    "elstm": (cells.elstm(**SIZES), 1),
    "min_gru": (cells.min_gru(**SIZES), 1),
    "lstm_columns": (cells.lstm_columns(input_size=INPUT_SIZE, num_columns=3), 2),
    "lstm_columns_of_two": (
        cells.lstm_columns(input_size=INPUT_SIZE, num_columns=2, column_size=2),
        4,
    ),
    "s5": (cells.s5(**SIZES, min_step=0.3, max_step=1.0), 2),
    "complex_s5": (cells.s5(**SIZES, min_step=0.3, max_step=1.0, complex_state=True), 2),
    "ctrnn": (cells.ctrnn(**SIZES), None),
    "learned_ctrnn": (cells.ctrnn(**SIZES, learned_time_constants=True, num_steps=3), None),
    "ltc": (cells.ltc(**SIZES, num_steps=3), None),
}


def structure_of(cell):
    return make_linearizer(cell, jnp.zeros(INPUT_SIZE), 1).structure


@pytest.mark.parametrize("name", CELLS)
def test_linearization_and_gradient_are_exact_with_diagonal_rtrl_where_units_are_separate(name):
    params = CELLS[name][0].init(jax.random.key(1))
    # A learner draws by other keys: the same parameters, whatever the key.
    cell, reach = CELLS[name][0]._replace(init=lambda key: params), CELLS[name][1]
    point = random_point(cell, INPUT_SIZE, steps=4)
    estimator = estimators.diagonal_rtrl(reach) if reach else estimators.rtrl()
    learner = learner_of(cell, point, estimator, 1)
    assert learner.linearizer.structure.problems == ()
    assert_linearized(learner.linearizer, cell, point, derivatives(cell, point), 1e-9)
    assert_learned(learner, point, 1, unrolled_gradient(cell, point), 1e-9, name)


@pytest.mark.parametrize("name", CELLS)
def test_diagonal_rtrl_refuses_what_reaches_further(name):
    cell, reach = CELLS[name]
    too_small = (reach or SIZES["hidden_size"]) - 1
    if too_small:
        with pytest.raises(UnsupportedCellError, match=f"more than unit_size={too_small} state"):
            estimators.diagonal_rtrl(too_small).init(structure_of(cell))


def pairs_of_lstms(*, input_size, hidden_size):
    return cells.lstm_columns(input_size=input_size, num_columns=hidden_size // 2, column_size=2)


# Of hidden_size, with the number of state variables that a weight reaches.
OF_ANY_SIZE = {
    "rtu": (cells.rtu, 2),
    "elstm": (cells.elstm, 1),
    "min_gru": (cells.min_gru, 1),
    "lstm_columns": (fidelity.CERTIFIED_CELLS["lstm_columns"], 2),
    "lstm_columns_of_two": (pairs_of_lstms, 4),
    "s5": (cells.s5, 2),
    "lru": (cells.lru, 2),
}


@pytest.mark.parametrize("name", OF_ANY_SIZE)
def test_diagonal_rtrl_has_as_many_numbers_for_a_weight_at_any_size(name):
    make, reach = OF_ANY_SIZE[name]

    def per_weight(hidden_size):
        structure = structure_of(make(input_size=INPUT_SIZE, hidden_size=hidden_size))
        state = jax.eval_shape(lambda: estimators.diagonal_rtrl(reach).init(structure))
        weights = [
            s.input_size * s.output_size if s.weights_mask is None else s.weights_mask.array.sum()
            for s in structure.sites
        ]
        return sum(leaf.size for leaf in jax.tree.leaves(state)) / sum(weights)

    assert per_weight(4) == per_weight(24) == reach


# Columns are one matrix with zeros between them, whose products are made in full.
@pytest.mark.parametrize("name", some(name for name in OF_ANY_SIZE if "columns" not in name))
def test_the_work_of_a_step_grows_as_the_parameters_do(name):
    make, reach = OF_ANY_SIZE[name]
    estimator = estimators.diagonal_rtrl(reach)

    def per_parameter(hidden_size):
        cell = make(input_size=INPUT_SIZE, hidden_size=hidden_size)
        linearizer = make_linearizer(cell, jnp.zeros(INPUT_SIZE), 1)

        def step(key):
            params, carry = cell.init(key), jax.tree.map(lambda c: c[None], cell.initial_carry())
            linearization = linearizer.linearize(
                params, carry, jax.random.normal(key, (1, INPUT_SIZE)), jnp.ones(1)
            )
            state = estimator.push(estimator.init(linearizer.structure), linearization, key)
            return estimator.pull(state, jnp.ones((1, linearizer.structure.state_size)))

        flops = jax.jit(step).lower(jax.random.key(0)).cost_analysis()["flops"]
        sizes = jax.eval_shape(cell.init, jax.random.key(0))
        return flops / sum(leaf.size for leaf in jax.tree.leaves(sizes))

    assert per_parameter(64) < 1.5 * per_parameter(8)


def test_snap_of_order_two_holds_all_that_a_column_can_reach():
    structure = structure_of(CELLS["lstm_columns_of_two"][0])
    (site,) = structure.sites
    np.testing.assert_array_equal(*(reachable(structure, site, order) for order in (2, 9)))


@pytest.mark.parametrize("make", [cells.lru, cells.s5])
def test_a_complex_state_has_the_values_of_two_real_ones(make):
    real, complex_ = make(**SIZES), make(**SIZES, complex_state=True)
    params, x = real.init(jax.random.key(1)), jnp.arange(3.0)
    parts, carry = (jnp.arange(4.0), jnp.arange(4.0)[::-1]), complex_.initial_carry()
    assert carry.dtype == jnp.complex128
    carry = jax.lax.complex(*parts)
    (re, im), output = evaluated(real.step, params, parts, x)
    z, same = evaluated(complex_.step, params, carry, x)
    np.testing.assert_allclose([z.real, z.imag], [re, im], rtol=1e-12)
    np.testing.assert_allclose(same, output, rtol=1e-12)


def test_s5_steps_through_its_differential_equation_with_constant_input():
    cell = CELLS["s5"][0]
    params, x = cell.init(jax.random.key(1)), np.arange(1.0, 4)
    p = jax.tree.map(np.asarray, params)
    eigenvalues = -np.exp(p["log_decay"]) + 1j * p["frequency"]
    driven = x @ (p["input_real"] + 1j * p["input_imaginary"])
    z = start = np.arange(4) + 1j * np.arange(4)[::-1]
    short = np.exp(p["log_step"]) / 2000
    for _ in range(2000):  # by the midpoint rule
        middle = z + short / 2 * (eigenvalues * z + driven)
        z = z + short * (eigenvalues * middle + driven)
    (real, imaginary), output = evaluated(cell.step, params, (start.real, start.imag), x)
    np.testing.assert_allclose(real + 1j * imaginary, z, rtol=1e-4)
    out = z @ (p["output_real"] + 1j * p["output_imaginary"])
    np.testing.assert_allclose(output, 2 * out.real + x @ p["skip"], rtol=1e-3)


def test_s5_starts_with_the_spectrum_of_hippo():
    size = 8
    rows, columns = np.indices((size, size))
    legs = np.where(rows > columns, np.sqrt((2 * rows + 1) * (2 * columns + 1)), 0)
    legs = -legs - np.diag(np.arange(size) + 1.0)
    low_rank = np.sqrt(np.arange(size) + 0.5)
    expected = np.linalg.eigvals(legs + np.outer(low_rank, low_rank))
    p = cells.s5(input_size=2, hidden_size=4).init(jax.random.key(0))
    np.testing.assert_allclose(np.exp(p["log_decay"]), 0.5, rtol=1e-12)
    np.testing.assert_allclose(expected.real, -0.5, rtol=1e-9)
    np.testing.assert_allclose(
        np.sort(p["frequency"]), np.sort(expected.imag[expected.imag > 0]), rtol=1e-9
    )


def test_linear_trace_units_turn_and_shrink_and_start_at_unit_variance():
    cell, params = CELLS["rtu"][0], CELLS["rtu"][0].init(jax.random.key(1))
    p = jax.tree.map(np.asarray, params)
    x, z = np.arange(1.0, 4), np.arange(4) + 1j * np.arange(4)[::-1]
    factors = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))
    gamma = np.sqrt(1 - np.abs(factors) ** 2)
    new = factors * z + gamma * (x @ (p["first"] + 1j * p["second"]))
    (a, b), output = evaluated(cell.step, params, (z.real, z.imag), x)
    np.testing.assert_allclose(a + 1j * b, new, rtol=1e-9)
    np.testing.assert_allclose(output, np.maximum(np.concatenate([a, b]), 0))


def test_the_fused_solver_approaches_the_differential_equation():
    def slope(h):
        f = jax.nn.sigmoid(jnp.concatenate([x, jnp.ones(1), h]) @ weights)
        return -(1 + f) * h + f * params["reversal"]

    fine = cells.ltc(**SIZES, num_steps=4000)
    params, x = fine.init(jax.random.key(1)), jnp.arange(3.0)
    weights = jnp.concatenate([params["input"], params["bias"][None], params["recurrent"]])
    start = h = jnp.arange(4.0) - 1
    for _ in range(100):
        h = h + 0.01 * slope(h + 0.005 * slope(h))
    np.testing.assert_allclose(fine.step(params, start, x)[1], h, atol=5e-4)
    coarse = cells.ltc(**SIZES).step(params, start, x)[1]
    np.testing.assert_allclose(coarse, h, atol=0.1)


@pytest.mark.parametrize("learned", [False, True])
def test_euler_steps_of_the_continuous_time_network(learned):
    cell = cells.ctrnn(
        **SIZES, time_constant=3.0, step_size=0.5, num_steps=2, learned_time_constants=learned
    )
    params, x = cell.init(jax.random.key(1)), np.arange(3.0)
    h = np.linspace(-1, 1, 4)
    carry, output = evaluated(cell.step, params, h, x)
    for _ in range(2):
        drive = np.concatenate([x, h, np.ones(1)]) @ np.concatenate(
            [params["input"], params["recurrent"], params["bias"][None]]
        )
        h = h + 0.5 / 3 * (np.tanh(drive) - h)
    np.testing.assert_allclose(carry, h, rtol=1e-12)
    np.testing.assert_array_equal(output, carry)


def test_a_column_is_an_lstm():
    cell = cells.lstm_columns(input_size=INPUT_SIZE, num_columns=2, column_size=3)
    params, x = cell.init(jax.random.key(1)), jnp.arange(3.0)
    c, h = jax.random.normal(jax.random.key(2), (2, 2, 3))
    (new_c, new_h), output = evaluated(cell.step, params, (c, h), x)
    single = cells.lstm(input_size=INPUT_SIZE, hidden_size=3)
    for k in range(2):
        weights = jnp.concatenate(
            [
                params["input"].reshape(3, 2, 12)[:, k],
                params["recurrent"][k],
                params["bias"][k][None],
            ]
        )
        carry, _ = evaluated(single.step, {"weights": weights}, (c[k], h[k]), x)
        np.testing.assert_allclose((new_c[k], new_h[k]), carry, rtol=1e-12)
    np.testing.assert_array_equal(output, new_h.reshape(-1))


REFUSED = {
    "rtu": [
        ({"activation": "sin"}, "activation must be"),
        ({"max_radius": 1.1}, "the radii must be"),
        ({"max_phase": 0.0}, "max_phase must be more than 0"),
    ],
    "ctrnn": [
        ({"step_size": 0.0}, "step_size must be more than 0"),
        ({"step_size": 2.5}, "at most time_constant=2.0, got 2.5"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
    ],
    "ltc": [
        ({"duration": 0.0}, "duration must be more than 0"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
    ],
    "s5": [
        ({"min_step": 0.0}, "the steps must be 0 < min_step"),
        ({"max_step": 1e-4}, "the steps must be 0 < min_step"),
    ],
}


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [(name, *case) for name, cases in REFUSED.items() for case in cases],
)
def test_numbers_out_of_range_are_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cells.CELLS[name](**SIZES, **kwargs)


@pytest.mark.parametrize("sizes", [{"num_columns": 0}, {"num_columns": 2, "column_size": 0}])
def test_empty_columns_are_refused(sizes):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        cells.lstm_columns(input_size=2, **sizes)


# One of them, as each takes seconds; KFRTRL_NIGHT runs them all.
DRAWN = CELLS if NIGHT else ["lstm_columns_of_two"]


@pytest.mark.parametrize("name", DRAWN)
def test_the_mean_of_kf_rtrl_is_the_exact_influence(name):
    z = monte_carlo.deviations(estimators.kf_rtrl(), CELLS[name][0], draws=4096, steps=5)
    assert np.max(np.abs(z)) < 4
