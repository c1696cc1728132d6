import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax.errors import UnsupportedCellError
from tests.helpers.interpreter import evaluated
from tests.trajectories import SMALL_CELLS, influence_rows, push_all, run

STEPS = 8


def rows_of(estimator, trajectory):
    n = trajectory.linearizer.structure.state_size
    cotangents = jnp.eye(2 * n).reshape(2 * n, 2, n)
    state = push_all(estimator, trajectory, jax.random.key(0))
    return influence_rows(estimator, trajectory, state, cotangents)


def without_recurrent_weights(cell):
    """The cell with the weights that multiply h set to zero: then the leak is all of J."""

    def step(params, carry, x):
        params = {"weights": params["weights"].at[3:7].set(0.0)}
        return cell.step(params, carry, x)

    return cell._replace(step=step)


@pytest.mark.parametrize("name", ["lstm", "vanilla"])
def test_e_prop_is_exact_where_no_recurrent_weight_carries_influence(name):
    trajectory = run(without_recurrent_weights(SMALL_CELLS[name]), STEPS)
    np.testing.assert_allclose(
        rows_of(estimators.e_prop(), trajectory), rows_of(estimators.rtrl(), trajectory), atol=1e-12
    )


def test_rflo_is_e_prop_where_a_unit_has_one_variable():
    trajectory = run(SMALL_CELLS["recurrent_highway"], STEPS)
    e_prop, rflo = (rows_of(e, trajectory) for e in (estimators.e_prop(), estimators.rflo()))
    np.testing.assert_allclose(e_prop, rflo, atol=1e-12)
    assert jnp.linalg.norm(e_prop - rows_of(estimators.rtrl(), trajectory)) > 0.01


def test_rflo_of_a_leaky_network_is_its_papers_trace():
    """h' = (1 - l) h + l tanh(W^T [x; h; 1]): p <- (1 - l) p + l phi'(z) [x; h; 1]."""
    leak = 0.3
    tanh_cell = cells.vanilla(input_size=3, hidden_size=4, init_scale=0.7)

    def step(params, h, x):
        new, _ = tanh_cell.step(params, h, x)
        h = (1 - leak) * h + leak * new
        return h, h

    cell = tanh_cell._replace(step=step)
    trajectory = run(cell, STEPS)
    state = push_all(estimators.rflo(), trajectory, jax.random.key(0))
    p = np.zeros((2, 8, 4))
    for t in range(STEPS):
        a = np.concatenate([trajectory.inputs[t], trajectory.carries[t], np.ones((2, 1))], axis=1)
        slope = 1 - np.tanh(a @ trajectory.params["weights"]) ** 2
        keep = np.asarray(trajectory.keep[t])[:, None, None]
        p = (1 - leak) * keep * p + leak * a[:, :, None] * slope[:, None, :]
    np.testing.assert_allclose(state.influence[0].values[:, :, 0], p, atol=1e-12)


@pytest.mark.parametrize(
    "step",
    [
        lambda p, h, x: 0.7 * h + p["bias"] + x @ p["w"],
        lambda p, h, x: jnp.tanh(x @ p["w"] + jnp.tanh(p["leak"] * h) + p["bias"]),
    ],
    ids=["beside a bias", "through an element-wise weight"],
)
def test_e_prop_follows_a_leak_inside_of_a_pre_activation(step):
    shapes = {"bias": (4,), "leak": (4,), "w": (3, 4)}

    def init(key):
        return {name: jax.random.normal(key, shape) for name, shape in shapes.items()}

    cell = cells.from_function(lambda *now: (step(*now),) * 2, init, jnp.zeros(4))
    trajectory = run(cell, STEPS)
    e_prop, exact = (
        evaluated(lambda _, e=e: rows_of(e, trajectory), trajectory.inputs)
        for e in (estimators.e_prop(), estimators.rtrl())
    )
    np.testing.assert_allclose(e_prop, exact, atol=1e-12)


def test_a_dense_derivative_is_refused():
    with pytest.raises(UnsupportedCellError, match="local to each unit"):
        push_all(
            estimators.e_prop(), run(SMALL_CELLS["deep_recurrent_highway"], 2), jax.random.key(0)
        )
