import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import tasks

# As the tasks standardize them: mean and standard deviation.
SCALES = {"henon": (0.257, 0.721), "lorenz": (0.0, 7.925), "mackey_glass": (0.93, 0.2262)}


@functools.cache
def stream(name, steps=2000, lanes=16, x64=True):
    """The series' own values, seven steps ahead: inputs and targets [steps, lanes]; and the resets."""
    with jax.enable_x64(x64):
        task = tasks.TASKS[name](batch_size=lanes, horizon=7)

        @jax.jit
        def run(key):
            first, rest = jax.random.split(key)
            return jax.lax.scan(task.sample, task.init(first), jax.random.split(rest, steps))[1]

        batch = run(jax.random.key(0))
    return *values(name, batch), np.asarray(batch.reset)


def values(name, batch):
    mean, std = SCALES[name]
    return (mean + std * np.asarray(x, float)[..., 0] for x in (batch.inputs, batch.targets))


def lorenz_solution(state, time, step=2e-3):
    """Classical Runge-Kutta at a smaller step than that of the task."""

    def velocity(s):
        x, y, z = s
        return np.array([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])

    for _ in range(round(time / step)):
        k1 = velocity(state)
        k2 = velocity(state + step / 2 * k1)
        k3 = velocity(state + step / 2 * k2)
        k4 = velocity(state + step * k3)
        state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


def mackey_glass_values(start, units, delay=17):
    """[units, lanes] from constant histories [lanes], one Euler step of 0.1 after the other."""
    x = {time: start for time in range(-10 * delay, 1)}  # in tenths of a unit
    for now in range(10 * units):
        delayed = x[now - 10 * delay]
        x[now + 1] = x[now] + 0.1 * (0.2 * delayed / (1 + delayed**10) - 0.1 * x[now])
    return np.array([x[10 * (unit + 1)] for unit in range(units)])


def test_henon_follows_its_map():
    inputs, _, _ = stream("henon")
    expected = 1 - 1.4 * inputs[1:-1] ** 2 + 0.3 * inputs[:-2]
    np.testing.assert_allclose(inputs[2:], expected, atol=1e-13)


def test_lorenz_follows_its_equation():
    # The method's own error is about 1e-4 after 25 steps of 0.01.
    task = tasks.lorenz(batch_size=3)
    state = task.init(jax.random.key(1))
    assert np.std(np.asarray(state.system)) > 1
    expected = lorenz_solution(np.array(state.system), 0.25)
    for key in jax.random.split(jax.random.key(2), 5):
        state, batch = jax.jit(task.sample)(state, key)
    np.testing.assert_allclose(np.array(state.system), expected, atol=1e-3)
    np.testing.assert_allclose(list(values("lorenz", batch))[1], expected[0], atol=1e-3)


def test_mackey_glass_follows_its_delay_equation():
    inputs, _, _ = stream("mackey_glass")
    # dx/dt at whole units, by central differences of fourth order.
    slope = (8 * (inputs[3:-1] - inputs[1:-3]) - (inputs[4:] - inputs[:-4])) / 12
    x, delayed = inputs[2:-2][17:], inputs[2:-2][:-17]
    expected = 0.2 * delayed / (1 + delayed**10) - 0.1 * x
    # Euler's method lags behind by half a step of 0.1.
    np.testing.assert_allclose(slope[17:], expected, atol=0.004)
    assert np.std(expected) > 0.02


@pytest.mark.parametrize("delay", [17, 30])
def test_mackey_glass_has_its_delay_and_the_scale_of_its_series(delay):
    """The held-out stream starts at a constant history of 0.2 + 0.5 x 0.31, and is read after 1,000."""
    task = tasks.mackey_glass(batch_size=1, delay=float(delay), valid_length=2000)
    expected = mackey_glass_values(np.float64(0.2 + 0.5 * 0.31), 3000, delay)[1000:]
    got = task.held_out["valid"].inputs[:, 0]
    slope, offset = np.polyfit(expected[:200], got[:200], 1)
    # Rounding grows along the series, by a factor of 1,000 in 1,000 units.
    np.testing.assert_allclose(got, slope * expected + offset, atol=1e-5)
    many = mackey_glass_values(np.random.default_rng(1).uniform(0.2, 0.7, 200), 2500, delay)[1000:]
    scaled = slope * many + offset
    np.testing.assert_allclose(scaled.mean(), 0, atol=0.02)
    np.testing.assert_allclose(scaled.std(), 1, rtol=0.01)


@pytest.mark.parametrize(
    ("delay", "message"),
    [
        (0.5, "at least 1, got 0.5"),
        (17.03, "multiple of 0.1, got 17.03"),
        (4.4, "at 4.4 the series comes to rest"),
    ],
)
def test_an_unusable_delay_is_refused(delay, message):
    with pytest.raises(ValueError, match=message):
        tasks.mackey_glass(batch_size=1, delay=delay)


@pytest.mark.parametrize("name", SCALES)
def test_horizon_is_the_distance_to_the_target_in_the_stream(name):
    inputs, targets, reset = stream(name)
    np.testing.assert_array_equal(targets[:-7], inputs[7:])
    np.testing.assert_array_equal(reset, np.arange(2000)[:, None].repeat(16, 1) == 0)


def test_standardization_is_that_of_long_trajectories():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-0.1, 0.1, (2, 2000))
    henon = []
    for _ in range(600):
        x, y = 1 - 1.4 * x * x + y, 0.3 * x
        henon.append(x)
    states = rng.uniform(-10, 10, (3, 1000)) + np.array([[0], [0], [25]])
    states, lorenz = lorenz_solution(states, 20, 0.01), []
    for _ in range(100):
        states = lorenz_solution(states, 0.2, 0.01)
        lorenz.append(states[0])
    glass = mackey_glass_values(rng.uniform(0.2, 0.7, 200), 2500)[1000:]
    for name, series in {
        "henon": np.array(henon[100:]),
        "lorenz": np.array(lorenz),
        "mackey_glass": glass,
    }.items():
        mean, std = SCALES[name]
        np.testing.assert_allclose(series.mean(), mean, atol=0.02 * std, err_msg=name)
        np.testing.assert_allclose(series.std(), std, rtol=0.01, err_msg=name)


@pytest.mark.parametrize("name", SCALES)
def test_lanes_are_independent_and_on_the_attractor(name):
    inputs, _, _ = stream(name)
    mean, std = SCALES[name]
    assert np.isfinite(inputs).all()
    assert abs(inputs.mean() - mean) < 0.1 * std
    np.testing.assert_allclose(inputs.std(), std, rtol=0.05)
    correlations = np.corrcoef(inputs.T) - np.eye(16)
    # The phases of Mackey-Glass drift apart slowly; lanes that run together would be at 1.
    assert np.abs(correlations).max() < (0.95 if name == "mackey_glass" else 0.5)


def test_henon_does_not_repeat_itself_in_single_precision():
    """Rounded to single precision, the map alone is in a cycle of at most 30,000 steps by then."""
    steps = 120_000
    inputs, _, _ = stream("henon", steps, 1, x64=False)
    expected = 1 - 1.4 * inputs[1:-1] ** 2 + 0.3 * inputs[:-2]
    np.testing.assert_allclose(inputs[2:], expected, atol=3e-6)
    late = np.float32(inputs[steps // 2 :, 0])
    pairs = np.unique(np.stack([late[:-1], late[1:]]), axis=1).shape[1]
    assert pairs > 0.95 * len(late)
    assert np.abs(late).max() < 1.3


@pytest.mark.parametrize("name", SCALES)
def test_held_out_streams_are_other_trajectories(name):
    task = tasks.TASKS[name](batch_size=1, horizon=3, valid_length=700, test_length=500)
    valid, test = task.held_out["valid"], task.held_out["test"]
    assert valid.inputs.shape == valid.targets.shape == (700, 1)
    assert test.inputs.shape == (500, 1)
    for part in (valid, test):
        np.testing.assert_array_equal(part.targets[:-3], part.inputs[3:])
        assert not part.reset.any()
        assert abs(part.inputs.mean()) < 0.6
        assert 0.5 < part.inputs.std() < 1.5
    assert np.abs(valid.inputs[:500] - test.inputs).mean() > 0.2


def test_score_of_the_mean_is_one():
    task = tasks.henon(batch_size=8)
    _, targets, _ = stream("henon")
    standardized = (targets.ravel() - 0.257) / 0.721
    scores = jax.vmap(lambda y: task.score.function(jnp.zeros(1), y[None]))(standardized)
    assert np.mean(scores) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("argument", ["batch_size", "horizon", "valid_length", "test_length"])
def test_impossible_sizes_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1"):
        tasks.lorenz(**{"batch_size": 1, argument: 0})
