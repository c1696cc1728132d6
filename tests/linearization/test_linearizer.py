import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax.base import Cell
from kfrtrl_jax.linearization import make_linearizer
from kfrtrl_jax.matrices import Banded
from tests.trajectories import BATCH_SIZE, INPUT_SIZE, SMALL_CELLS, flat


def assert_linearization_is_the_jacobian(cell, x, carry=None, params=None, atol=1e-10):
    """J and the sites, put together again, equal `jax.jacobian` of the cell's step in every lane."""
    key = jax.random.key(3)
    params = cell.init(key) if params is None else params
    if carry is None:
        carry = jax.tree.map(
            lambda c: jax.random.normal(key, (BATCH_SIZE, *c.shape)), cell.initial_carry()
        )
    linearizer = make_linearizer(cell, jax.tree.map(lambda leaf: leaf[0], x), BATCH_SIZE)
    keep = jnp.asarray([1.0] * (BATCH_SIZE - 1) + [0.0])
    linearization = jax.jit(linearizer.linearize)(params, carry, x, keep)
    n = linearizer.structure.state_size

    def new_state(params, carry, x):
        return flat(cell.step(params, carry, x)[0])

    for lane in range(BATCH_SIZE):
        here = jax.tree.map(lambda leaf, lane=lane: leaf[lane], (carry, x))
        by_params, by_carry = jax.jacobian(new_state, argnums=(0, 1))(params, *here)
        expected = np.concatenate([b.reshape(n, -1) for b in jax.tree.leaves(by_carry)], axis=1)
        np.testing.assert_allclose(
            linearization.jacobian.dense()[lane], keep[lane] * expected, atol=atol
        )
        for i in range(n):
            blocks = tuple(
                jnp.outer(site.input[lane], site.derivative.dense()[lane, i])
                for site in linearization.sites
            )
            jax.tree.map(
                lambda got, want, i=i: np.testing.assert_allclose(got, want[i], atol=atol),
                linearizer.gradient(params, blocks),
                by_params,
            )
    return linearizer, linearization


def inputs():
    return jax.random.normal(jax.random.key(5), (BATCH_SIZE, INPUT_SIZE))


@pytest.mark.parametrize("name", SMALL_CELLS)
def test_linearization_equals_the_dense_jacobian(name):
    assert_linearization_is_the_jacobian(SMALL_CELLS[name], inputs())


@pytest.mark.parametrize("name", ["vanilla", "recurrent_highway", "lstm", "gru"])
def test_derivatives_of_elementwise_cells_are_banded(name):
    linearizer, linearization = assert_linearization_is_the_jacobian(SMALL_CELLS[name], inputs())
    assert all(isinstance(site.derivative, Banded) for site in linearization.sites)
    assert linearizer.structure.problems == ()


def test_cell_state_of_an_lstm_has_a_diagonal_jacobian():
    _, linearization = assert_linearization_is_the_jacobian(SMALL_CELLS["lstm"], inputs())
    assert isinstance(linearization.jacobian.blocks[0], Banded)


def weights(key, *shapes):
    keys = jax.random.split(key, len(shapes))
    return [0.5 * jax.random.normal(k, shape) for k, shape in zip(keys, shapes)]


def make_cell(shapes, step, carry_size=4):
    return Cell(lambda key: weights(key, *shapes), lambda: jnp.zeros(carry_size), step)


def test_separate_matrices_and_biases_become_one_site():
    def step(params, h, x):
        w, v, b = params
        h = jnp.tanh(x @ w + v.T @ h + b)
        return h, h

    cell = make_cell([(INPUT_SIZE, 4), (4, 4), (4,)], step)
    linearizer, _ = assert_linearization_is_the_jacobian(cell, inputs())
    (site,) = linearizer.structure.sites
    assert (site.input_size, site.output_size) == (INPUT_SIZE + 4 + 1, 4)


def test_gates_with_the_same_inputs_become_one_site():
    def step(params, h, x):
        wx, wh, b, vx, vh, d = params
        gate = jax.nn.sigmoid(x @ wx + h @ wh + b)
        h = gate * h + (1 - gate) * jnp.tanh(x @ vx + h @ vh + d)
        return h, h

    cell = make_cell([(INPUT_SIZE, 4), (4, 4), (4,)] * 2, step)
    linearizer, _ = assert_linearization_is_the_jacobian(cell, inputs())
    (site,) = linearizer.structure.sites
    assert (site.input_size, site.output_size) == (INPUT_SIZE + 4 + 1, 8)


def test_elementwise_weights_are_sites_of_one_row():
    def step(params, h, x):
        w, a = params
        h = jnp.tanh(x @ w) + jax.nn.sigmoid(a) * h
        return h, h

    linearizer, linearization = assert_linearization_is_the_jacobian(
        make_cell([(INPUT_SIZE, 4), (4,)], step), inputs()
    )
    assert {(s.input_size, s.output_size) for s in linearizer.structure.sites} == {
        (INPUT_SIZE, 4),
        (1, 4),
    }
    assert isinstance(linearization.jacobian.blocks[0], Banded)


def test_products_of_parameters_are_differentiated_through():
    def step(params, h, x):
        low, rank, scale = params
        w = low @ rank / jnp.linalg.norm(low) * jnp.exp(scale)
        h = jnp.tanh(jnp.concatenate([x, h]) @ w)
        return h, h

    cell = make_cell([(INPUT_SIZE + 4, 2), (2, 4), ()], step)
    linearizer, _ = assert_linearization_is_the_jacobian(cell, inputs())
    assert len(linearizer.structure.sites) == 1


def test_dense_operations_after_the_product_are_handled():
    def step(params, h, x):
        w, v = params
        z = jnp.concatenate([x, h]) @ w
        z = (z - z.mean()) / jnp.sqrt(z.var() + 1e-3)
        h = jnp.tanh(z + jnp.tanh(h @ v)) + jax.nn.softmax(h)
        return h, h

    cell = make_cell([(INPUT_SIZE + 4, 4), (4, 4)], step)
    linearizer, _ = assert_linearization_is_the_jacobian(cell, inputs())
    assert linearizer.structure.problems == ()


def test_parameters_in_no_product_are_named_and_still_right():
    def step(params, h, x):
        w, v = params
        h = jnp.tanh(jnp.concatenate([x, h]) @ w) * jnp.maximum(v, h)
        return h, h

    linearizer, _ = assert_linearization_is_the_jacobian(
        make_cell([(INPUT_SIZE + 4, 4), (4,)], step), inputs()
    )
    assert len(linearizer.structure.problems) == 1
    assert "max" in linearizer.structure.problems[0]


def test_scan_remat_and_jit_inside_a_step_are_looked_through():
    def step(params, h, x):
        (w,) = params

        @jax.checkpoint
        def layer(s, _):
            s = jax.jit(lambda s: jnp.tanh(jnp.concatenate([x, s]) @ w))(s)
            return s, None

        h, _ = jax.lax.scan(layer, h, None, length=2)
        return h, h

    linearizer, _ = assert_linearization_is_the_jacobian(
        make_cell([(INPUT_SIZE + 4, 4)], step), inputs()
    )
    assert [s.input_size for s in linearizer.structure.sites] == [INPUT_SIZE + 4] * 2
    assert linearizer.structure.problems == ()


def test_integer_carries_have_no_derivative():
    def step(params, carry, x):
        h, count = carry
        h = jnp.tanh(jnp.concatenate([x, h]) @ params[0] + count)
        return (h, count + 1), h

    cell = Cell(
        lambda key: weights(key, (INPUT_SIZE + 4, 4)),
        lambda: (jnp.zeros(4), jnp.zeros((), jnp.int32)),
        step,
    )
    linearizer = make_linearizer(cell, inputs()[0], BATCH_SIZE)
    assert linearizer.structure.state_size == 4
    carry = (jnp.ones((BATCH_SIZE, 4)), jnp.ones(BATCH_SIZE, jnp.int32))
    linearization = linearizer.linearize(
        cell.init(jax.random.key(0)), carry, inputs(), jnp.ones(BATCH_SIZE)
    )
    assert linearization.jacobian.dense().shape == (BATCH_SIZE, 4, 4)
