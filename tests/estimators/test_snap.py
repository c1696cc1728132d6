import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax._src.matrices import Banded
from kfrtrl_jax.base import Cell, InfluenceEstimator
from tests.trajectories import INPUT_SIZE, SMALL_CELLS, influence_rows, push_all, run

STEPS = 6


def rows_of(estimator, trajectory):
    return rows_of_all([estimator], trajectory)[0]


def rows_of_all(side_by_side, trajectory):
    """What each estimator pulls for some cotangents, all of them pushed by one program."""
    n = trajectory.linearizer.structure.state_size
    cotangents = jax.random.normal(jax.random.key(9), (3, 2, n))
    joint = InfluenceEstimator(
        init=lambda structure: [e.init(structure) for e in side_by_side],
        push=lambda states, *xs: [e.push(s, *xs) for e, s in zip(side_by_side, states)],
        pull=None,
    )

    @jax.jit
    def rows():
        states = push_all(joint, trajectory, jax.random.key(0))
        return [influence_rows(e, trajectory, s, cotangents) for e, s in zip(side_by_side, states)]

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
            (group,) = site.derivatives.groups
            pattern = nonzero(group)
            for _ in range(order - 1):
                pattern = pattern | (step @ pattern > 0)
            kept.append(g * pattern[:, None, :])
        return state._replace(influence=tuple(kept))

    return exact._replace(push=push)


def nonzero(matrix):
    """With ones in place of its values, whatever they are."""
    ones = jax.tree.map(lambda x: np.ones(x.shape[-2:]), matrix)
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
    rows, expected = rows_of_all([estimators.snap(), on_pattern(1)], trajectory)
    np.testing.assert_allclose(rows, expected, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_higher_orders_are_rtrl_on_a_wider_pattern(order):
    trajectory = run(ring(), STEPS)
    rows, expected, exact = rows_of_all(
        [estimators.snap(order), on_pattern(order), estimators.rtrl()], trajectory
    )
    np.testing.assert_allclose(rows, expected, atol=1e-12)
    assert jnp.max(jnp.abs(rows - exact)) > 1e-3


@pytest.mark.parametrize(("cell", "order"), [(ring(), 6), (SMALL_CELLS["lstm"], 2)])
def test_it_is_rtrl_where_the_pattern_is_full(cell, order):
    trajectory = run(cell, 8)
    rows, exact = rows_of_all([estimators.snap(order), estimators.rtrl()], trajectory)
    np.testing.assert_allclose(rows, exact, atol=1e-12)


def test_order_one_is_exact_for_a_diagonal_recurrence_and_small():
    trajectory, estimator = run(diagonal(), STEPS), estimators.snap(1)
    rows, exact = rows_of_all([estimator, estimators.rtrl()], trajectory)
    np.testing.assert_allclose(rows, exact, atol=1e-12)
    weights = sum(x.size for x in jax.tree.leaves(trajectory.params))
    # One entry a weight and lane.
    assert entries(estimator, trajectory.linearizer.structure) == 2 * weights


def test_higher_orders_keep_the_form_of_order_one_where_they_add_nothing():
    structure = run(diagonal(), 2).linearizer.structure
    assert all(isinstance(g, Banded) for g in estimators.snap(3).init(structure).influence)


UNITS = 8


def masked_reference(trajectory, order):
    """G of the masked tanh network, unit by weight, with explicit masks after each step.

    The definition: weight W_jl is kept where it is not masked, and at unit i if i can be reached from l
    in fewer than `order` steps along the recurrent weights that are not masked.
    """
    weights = np.asarray(trajectory.params["weights"])
    present = weights != 0
    recurrent = slice(INPUT_SIZE, INPUT_SIZE + UNITS)
    reach = np.eye(UNITS, dtype=bool)
    for _ in range(order - 1):
        reach = reach | (present[recurrent].T @ reach)
    kept = reach[:, None, :] & present
    g = np.zeros((2, UNITS, *weights.shape))
    for x, h, keep in zip(trajectory.inputs, trajectory.carries, trajectory.keep, strict=True):
        a = np.concatenate([x, h, np.ones((2, 1))], axis=1)
        slope = 1 - np.tanh(a @ weights) ** 2
        jacobian = keep[:, None, None] * slope[:, :, None] * weights[recurrent].T
        g = np.einsum("bij,bjml->biml", jacobian, g)
        g[:, np.arange(UNITS), :, np.arange(UNITS)] += (a[:, None] * slope[:, :, None]).swapaxes(
            0, 1
        )
        g = g * kept
    return g


def test_sparse_tanh_network_is_the_definition_with_explicit_masks():
    cell = cells.vanilla(input_size=INPUT_SIZE, hidden_size=UNITS, init_scale=0.7, sparsity=0.85)
    trajectory = run(cell, STEPS)
    structure = trajectory.linearizer.structure
    orders = [1, 2, 20]
    *rows, exact = rows_of_all([*map(estimators.snap, orders), estimators.rtrl()], trajectory)
    cotangents = jax.random.normal(jax.random.key(9), (3, 2, UNITS))
    sizes = []
    for order, gradients in zip(orders, rows, strict=True):
        expected = np.einsum("cbi,biml->cml", cotangents, masked_reference(trajectory, order))
        np.testing.assert_allclose(gradients, expected.reshape(3, -1), atol=1e-12)
        sizes.append(entries(estimators.snap(order), structure))
    np.testing.assert_allclose(rows[2], exact, atol=1e-12)
    assert np.max(np.abs(rows[1] - exact)) > 1e-3
    assert sizes[0] < sizes[1] < sizes[2] == entries(estimators.rtrl(), structure)
    # Not only the mask in front of the parameters makes the gradient of absent weights 0.
    estimator = estimators.snap(20)
    filled = jax.tree.map(jnp.ones_like, estimator.init(structure))
    absent = np.asarray(trajectory.params["weights"]) == 0
    np.testing.assert_array_equal(absent, ~structure.sites[0].weights_mask.array)
    np.testing.assert_array_equal(estimator.pull(filled, jnp.ones((2, UNITS)))[0] == 0, absent)


def entries(estimator, structure):
    return sum(x.size for x in jax.tree.leaves(estimator.init(structure)))


@pytest.mark.parametrize("depth", [0, 2])
def test_large_orders_are_rtrl_on_sparse_networks(depth):
    sizes = {"input_size": INPUT_SIZE, "hidden_size": UNITS, "init_scale": 0.7, "sparsity": 0.85}
    cell = cells.recurrent_highway(**sizes, depth=depth) if depth else cells.gru(**sizes)
    trajectory, estimator = run(cell, STEPS), estimators.snap(20)
    rows, exact = rows_of_all([estimator, estimators.rtrl()], trajectory)
    np.testing.assert_allclose(rows, exact, atol=1e-12)
    structure = trajectory.linearizer.structure
    assert entries(estimator, structure) <= entries(estimators.rtrl(), structure)
    every_weight = sum(2 * UNITS * s.input_size * s.output_size for s in structure.sites)
    assert entries(estimators.rtrl(), structure) < 0.7 * every_weight


def test_snap_refuses_order_zero():
    with pytest.raises(ValueError, match="order must be at least 1"):
        estimators.snap(0)
