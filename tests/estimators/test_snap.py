import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from kfrtrl_jax.base import Cell
from tests.trajectories import SMALL_CELLS, influence_rows, push_all, run

STEPS = 6


def rows_of(estimator, trajectory):
    n = trajectory.linearizer.structure.state_size
    cotangents = jax.random.normal(jax.random.key(9), (3, 2, n))

    @jax.jit
    def rows():
        state = push_all(estimator, trajectory, jax.random.key(0))
        return influence_rows(estimator, trajectory, state, cotangents)

    return rows()


def on_pattern(order):
    """The definition: exact RTRL, with what the pattern does not hold set to 0 after each step."""
    exact = estimators.rtrl()

    def push(state, linearization, key):
        jacobian = linearization.jacobian
        step = np.concatenate([nonzero(b) for b in jacobian.blocks], axis=1)
        kept = []
        for g, site in zip(
            exact.push(state, linearization, key).influence, linearization.sites, strict=True
        ):
            pattern = nonzero(site.derivative)
            for _ in range(order - 1):
                pattern = pattern | (step @ pattern > 0)
            kept.append(g * pattern[:, None, :])
        return state._replace(influence=tuple(kept))

    return exact._replace(push=push)


def nonzero(matrix):
    """With ones in place of its values, whatever they are."""
    ones = jax.tree.map(lambda x: np.ones(x.shape[1:]), matrix)
    with jax.ensure_compile_time_eval():
        return np.asarray(ones.dense()) != 0


def diagonal():
    """h' = tanh(decay * h + W^T x + b): no unit sees another."""

    def init(key):
        keys = jax.random.split(key, 3)
        return {
            "decay": jax.random.normal(keys[0], (4,)),
            "weights": jax.random.normal(keys[1], (3, 4)),
            "bias": jax.random.normal(keys[2], (4,)),
        }

    def step(params, h, x):
        h = jnp.tanh(params["decay"] * h + x @ params["weights"] + params["bias"])
        return h, h

    return Cell(init, lambda: jnp.zeros(4), step)


def ring():
    """h' = tanh(h + its left neighbour + W^T x): influence spreads by one unit a step."""

    def step(params, h, x):
        h = jnp.tanh(0.5 * h + 0.9 * jnp.roll(h, 1) + x @ params["weights"])
        return h, h

    return Cell(lambda key: {"weights": jax.random.normal(key, (3, 6))}, lambda: jnp.zeros(6), step)


@pytest.mark.parametrize("cell", ["vanilla", "deep_recurrent_highway", "lstm", "gru"])
def test_order_one_is_rtrl_on_the_pattern_of_the_immediate_jacobian(cell):
    trajectory = run(SMALL_CELLS[cell], STEPS)
    np.testing.assert_allclose(
        rows_of(estimators.snap(), trajectory), rows_of(on_pattern(1), trajectory), atol=1e-12
    )


@pytest.mark.parametrize("order", [1, 2, 4])
def test_higher_orders_are_rtrl_on_a_wider_pattern(order):
    trajectory = run(ring(), STEPS)
    rows = rows_of(estimators.snap(order), trajectory)
    np.testing.assert_allclose(rows, rows_of(on_pattern(order), trajectory), atol=1e-12)
    assert jnp.max(jnp.abs(rows - rows_of(estimators.rtrl(), trajectory))) > 1e-3


@pytest.mark.parametrize(("cell", "order"), [(ring(), 6), (SMALL_CELLS["lstm"], 2)])
def test_it_is_rtrl_where_the_pattern_is_full(cell, order):
    trajectory = run(cell, 8)
    np.testing.assert_allclose(
        rows_of(estimators.snap(order), trajectory),
        rows_of(estimators.rtrl(), trajectory),
        atol=1e-12,
    )


def test_order_one_is_exact_for_a_diagonal_recurrence_and_small():
    trajectory, estimator = run(diagonal(), STEPS), estimators.snap(1)
    np.testing.assert_allclose(
        rows_of(estimator, trajectory), rows_of(estimators.rtrl(), trajectory), atol=1e-12
    )
    state = estimator.init(trajectory.linearizer.structure)
    weights = sum(x.size for x in jax.tree.leaves(trajectory.params))
    assert sum(x.size for x in jax.tree.leaves(state)) == 2 * weights  # one entry a weight and lane


def test_snap_refuses_order_zero():
    with pytest.raises(ValueError, match="order must be at least 1"):
        estimators.snap(0)
