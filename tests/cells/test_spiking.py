"""Spiking cells; references are differentiated with the same surrogates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax._src.cells.surrogates import spike_function
from tests.estimators import monte_carlo
from tests.helpers.interpreter import evaluated
from tests.linearization.references import assert_exact, random_point, with_fixed_parameters
from tests.trajectories import INPUT_SIZE, influence_rows, push_all, run

STEPS, UNITS = 4, 4
SIZES = {"input_size": INPUT_SIZE, "hidden_size": UNITS}
EXACT = {
    "lif": cells.lif(**SIZES),
    "lif, learned, reset to zero": cells.lif(
        **SIZES, reset="zero", surrogate="arctan", learned_dynamics=True
    ),
    "alif": cells.alif(**SIZES, detach_reset=True, surrogate="fast_sigmoid", adaptation=0.4),
    "adlif, learned": cells.adlif(**SIZES, surrogate="boxcar", learned_dynamics=True),
}


@pytest.mark.parametrize("name", EXACT)
def test_linearization_and_rtrl_are_exact(name):
    cell = with_fixed_parameters(EXACT[name])
    linearizer = assert_exact(cell, random_point(cell, INPUT_SIZE, steps=4), at_once=True)
    assert linearizer.structure.problems == ()
    assert all(site.columns is not None for site in linearizer.structure.sites)


def test_kf_rtrl_is_unbiased_on_adlif():
    z = monte_carlo.deviations(estimators.kf_rtrl(), cells.adlif(**SIZES), draws=1024, steps=4)
    assert np.max(np.abs(z)) < 4


def spikes(params, xs, step):
    """[T, units], for a step (input current, state) -> (state, spikes), by NumPy."""
    state, z, found = None, np.zeros(UNITS), []
    for x in xs:
        current = x @ params["input"] + z @ params["recurrent"] + params["bias"]
        state, z = step(current, z, state)
        z = z.astype(float)
        found.append(z)
    return np.stack(found)


def lif_step(current, z, u):
    u = 0.7 * (0 if u is None else u) * (1 - z) + current
    return u, u > 0.5


def alif_step(current, z, state):
    u, a = (np.zeros(UNITS),) * 2 if state is None else state
    u = 0.7 * u + current - 0.5 * z
    z = u > 0.5 + 0.3 * a
    return (u, 0.9 * a + z), z


def adlif_step(current, z, state):
    u, w = (np.zeros(UNITS),) * 2 if state is None else state
    u = 0.7 * u + 0.3 * (current - w) - 0.2 * z
    z = u > 0.2
    return (u, 0.9 * w + 0.5 * u + 0.4 * z), z


@pytest.mark.parametrize("learned_dynamics", [False, True])
@pytest.mark.parametrize(
    ("make", "options", "step"),
    [
        (cells.lif, {"leak": 0.7, "threshold": 0.5, "reset": "zero"}, lif_step),
        (cells.alif, {"leak": 0.7, "threshold": 0.5, "adaptation": 0.3}, alif_step),
        (
            cells.adlif,
            {"leak": 0.7, "adaptation_leak": 0.9, "membrane_coupling": 0.5, "spike_coupling": 0.4},
            adlif_step,
        ),
    ],
)
def test_steps_are_those_of_the_papers(make, options, step, learned_dynamics):
    cell = make(**SIZES, **options, init_scale=1.0, learned_dynamics=learned_dynamics)
    params = cell.init(jax.random.key(1))
    xs = jax.random.normal(jax.random.key(2), (30, INPUT_SIZE))

    def outputs(params, xs):
        return jax.lax.scan(lambda c, x: cell.step(params, c, x), cell.initial_carry(), xs)[1]

    found = evaluated(outputs, params, xs)
    assert 0.1 < np.mean(found) < 0.6
    np.testing.assert_array_equal(found, spikes(jax.tree.map(np.asarray, params), xs, step))


def traces(estimator, trajectory, variables):
    """Of each unit's variables by the weights into it, [lane, variable, weight, unit]."""
    key = jax.random.key(0)
    (influence,) = evaluated(lambda key: push_all(estimator, trajectory, key).influence, key)
    own = UNITS * np.arange(variables)[:, None] + np.arange(UNITS)
    return np.asarray(influence.dense())[:, :, own, np.arange(UNITS)].swapaxes(1, 2)


def presynaptic(trajectory, t):
    """[lane, weight, 1]: what input and recurrent weights and biases meet."""
    ones = np.ones((len(trajectory.keep[t]), 1))
    met = np.concatenate([trajectory.inputs[t], trajectory.carries[-1][t], ones], axis=1)
    return met[:, :, None]


def triangle(excess, threshold):
    return (0.3 * np.maximum(0, 1 - np.abs(excess / threshold)) / threshold)[:, None]


def test_e_prop_on_alif_is_its_papers_trace():
    """Of u: e <- leak e + a; of z: g = slope (e - adaptation f); of a: f <- leak_a f + g."""
    leak, leak_a, adaptation, threshold = 0.8, 0.9, 0.4, 0.5
    cell = cells.alif(**SIZES, threshold=threshold, adaptation=adaptation, detach_reset=True)
    trajectory = run(cell, STEPS)
    step = jax.vmap(jax.vmap(lambda c, x: cell.step(trajectory.params, c, x)[0][0]))
    membranes = evaluated(step, trajectory.carries, trajectory.inputs)
    e = f = np.zeros((2, 1, 1))
    for t in range(STEPS):
        keep = np.asarray(trajectory.keep[t])[:, None, None]
        e = leak * keep * e + presynaptic(trajectory, t) * np.ones(UNITS)
        excess = membranes[t] - threshold - adaptation * trajectory.carries[1][t]
        spike = triangle(excess, threshold) * (e - adaptation * keep * f)
        f = leak_a * keep * f + spike
    assert np.abs(spike - f).max() > 0.1
    expected = np.stack([e, f, spike], axis=1)
    np.testing.assert_allclose(traces(estimators.e_prop(), trajectory, 3), expected, atol=1e-12)


LIF = cells.lif(**SIZES, reset="zero")


def test_e_prop_on_lif_is_the_trace_of_ostl_without_recurrent_gradients():
    """e <- leak (1 - z - u slope) e + a, with z and the slope of the last spike."""
    trajectory = run(LIF, STEPS)
    e = np.zeros((2, 1, 1))
    for t in range(STEPS):
        u, z = (np.asarray(c[t]) for c in trajectory.carries)
        decay = 0.8 * ((1 - z)[:, None] - u[:, None] * triangle(u - 0.6, 0.6))
        e = np.asarray(trajectory.keep[t])[:, None, None] * decay * e + presynaptic(trajectory, t)
    membrane = traces(estimators.e_prop(), trajectory, 2)[:, 0]
    np.testing.assert_allclose(membrane, e, atol=1e-12)


@pytest.mark.parametrize(
    ("cell", "connected"),
    [(LIF, True), (cells.lif(**SIZES, learned_dynamics=True), False)],
    ids=["connected", "unconnected, learned"],
)
def test_e_prop_is_snap_without_self_connections_and_exact_without_any(cell, connected):
    kept = connected * (1 - np.eye(UNITS))

    def step(params, carry, x):
        return cell.step({**params, "recurrent": kept * params["recurrent"]}, carry, x)

    trajectory = run(cell._replace(step=step), STEPS)
    n = trajectory.linearizer.structure.state_size
    cotangents = jnp.eye(2 * n).reshape(2 * n, 2, n)

    def rows_of(estimator, key):
        state = push_all(estimator, trajectory, key)
        return influence_rows(estimator, trajectory, state, cotangents)

    e_prop, snap, exact = (
        evaluated(functools.partial(rows_of, estimator), jax.random.key(0))
        for estimator in (estimators.e_prop(), estimators.snap(), estimators.rtrl())
    )
    np.testing.assert_allclose(e_prop, snap, atol=1e-12)
    error = np.abs(e_prop - exact).max()
    assert error > 0.01 if connected else error < 1e-12


@pytest.mark.parametrize(
    ("surrogate", "slopes"),
    [
        ("triangle", [0, 0.24, 0.3, 0.15, 0]),
        ("fast_sigmoid", [1 / 441, 1 / 9, 1, 1 / 36, 1 / 256]),
        ("arctan", [1 / (1 + (np.pi * v) ** 2) for v in (-2, -0.2, 0, 0.5, 1.5)]),
        ("boxcar", [0, 0.5, 0.5, 0.5, 0]),
    ],
)
def test_a_spike_has_the_derivative_of_its_surrogate(surrogate, slopes):
    spike = spike_function(surrogate)
    excess = jnp.asarray([-2, -0.2, 0, 0.5, 1.5])
    np.testing.assert_array_equal(spike(excess), [0, 0, 0, 1, 1])
    np.testing.assert_allclose(jax.vmap(jax.grad(spike))(excess), slopes, rtol=1e-12)
    np.testing.assert_allclose(jax.jvp(spike, (excess,), (jnp.ones(5),))[1], slopes, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (cells.lif, {"leak": 1.0}, r"leak must be in \(0, 1\), got 1.0"),
        (cells.lif, {"threshold": 0.0}, "threshold must be more than 0, got 0.0"),
        (cells.lif, {"reset": "soft"}, 'reset must be "subtraction" or "zero", got \'soft\''),
        (cells.lif, {"surrogate": "tanh"}, "surrogate must be one of triangle, .*, got 'tanh'"),
        (cells.alif, {"adaptation_leak": -0.1}, r"adaptation_leak must be in \(0, 1\)"),
        (cells.alif, {"adaptation": -1.0}, "adaptation must be at least 0, got -1.0"),
        (cells.adlif, {"membrane_coupling": 2.0}, r"membrane_coupling must be in \[-1, 1\]"),
        (cells.adlif, {"spike_coupling": float("nan")}, r"spike_coupling must be in \[0, 2\]"),
    ],
)
def test_what_is_out_of_range_is_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**SIZES, **options)
