import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells
from kfrtrl_jax._src.matrices import Banded
from kfrtrl_jax.base import Cell
from kfrtrl_jax.linearization import make_linearizer
from tests.helpers.jacobians import assert_linearization_is_the_jacobian, inputs
from tests.trajectories import BATCH_SIZE, INPUT_SIZE, SMALL_CELLS


@pytest.mark.parametrize("name", SMALL_CELLS)
def test_linearization_equals_the_dense_jacobian(name):
    assert_linearization_is_the_jacobian(SMALL_CELLS[name], inputs())


@pytest.mark.parametrize("name", ["vanilla", "recurrent_highway", "lstm", "gru"])
def test_derivatives_of_elementwise_cells_are_banded(name):
    linearizer, linearization = assert_linearization_is_the_jacobian(SMALL_CELLS[name], inputs())
    assert all(isinstance(site.derivatives.groups[0], Banded) for site in linearization.sites)
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
    assert [(s.input_size, s.uses) for s in linearizer.structure.sites] == [(INPUT_SIZE + 4, 2)]
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


def exact_sites(step, shapes, carry_size=4):
    linearizer, _ = assert_linearization_is_the_jacobian(
        make_cell(shapes, step, carry_size), inputs()
    )
    assert linearizer.structure.problems == ()
    return linearizer.structure.sites


def test_gates_cut_out_of_separate_products_are_one_site():
    """The form of Flax's OptimizedLSTMCell: two products, each split, the parts added up."""

    def step(params, h, x):
        wx, wh = params
        a, b = jnp.split(x @ wx, 2)
        c, d = jnp.split(h @ wh, 2)
        h = jax.nn.sigmoid(a + c) * h + jnp.tanh(b + d)
        return h, h

    (site,) = exact_sites(step, [(INPUT_SIZE, 8), (4, 8)])
    assert (site.input_size, site.output_size) == (INPUT_SIZE + 4, 8)


def test_embedding_lookups_are_products_with_one_hot_vectors():
    def step(params, carry, x):
        h, token = carry
        table, gain, w = params
        row = table[token] + jnp.take(gain, token, axis=0)
        h = jnp.tanh(row + jnp.concatenate([x, h]) @ w)
        return (h, (token * 3 + 1) % 7), h

    cell = Cell(
        lambda key: weights(key, (7, 4), (7, 4), (INPUT_SIZE + 4, 4)),
        lambda: (jnp.zeros(4), jnp.zeros((), jnp.int32)),
        step,
    )
    carry = (jnp.ones((BATCH_SIZE, 4)), jnp.arange(BATCH_SIZE, dtype=jnp.int32))
    linearizer = make_linearizer(cell, inputs()[0], BATCH_SIZE)
    assert linearizer.structure.problems == ()
    params = cell.init(jax.random.key(0))
    linearization = linearizer.linearize(params, carry, inputs(), jnp.ones(BATCH_SIZE))
    for lane in range(BATCH_SIZE):

        def new_state(params, lane=lane):
            return step(params, (carry[0][lane], carry[1][lane]), inputs()[lane])[0][0]

        expected = jax.jacobian(new_state)(params)
        for i in range(4):
            blocks = tuple(
                jnp.einsum("tm,tg->mg", site.inputs[lane], site.derivatives.dense()[lane, :, i])
                for site in linearization.sites
            )
            for got, want in zip(linearizer.gradient(params, blocks), expected):
                np.testing.assert_allclose(got, want[i], atol=1e-12)


def test_one_parameter_in_several_products_is_tracked_at_each():
    def step(params, h, x):
        w, v = params
        rows = jnp.stack([h, jnp.tanh(h), h**2])
        h = jnp.tanh((rows @ w).sum(axis=0) + w @ h + x @ v)
        return h, h

    assert len(exact_sites(step, [(4, 4), (INPUT_SIZE, 4)])) > 1


def test_heads_are_single_products():
    def step(params, h, x):
        w, v = params
        heads = jnp.einsum("hi,hij->hj", h.reshape(2, 2), w).reshape(-1)
        h = jnp.tanh(heads + x @ v)
        return h, h

    exact_sites(step, [(2, 2, 2), (INPUT_SIZE, 4)])


def test_quotients_differences_choices_and_concatenations_with_parameters():
    def step(params, h, x):
        w, a, b, c, d = params
        z = jnp.concatenate([x @ w / (1 + a[:2] ** 2), b[:2]])
        z = jnp.where(h > 0, c, z) - (d - jnp.sin(h)) + jnp.exp(a) / (1 + h**2)
        h = jnp.tanh(z)
        return h, h

    exact_sites(step, [(INPUT_SIZE, 2), (4,), (4,), (4,), (4,)])


def test_branches_of_a_conditional_are_looked_into():
    def step(params, h, x):
        w, v = params
        h = jax.lax.cond(
            x[0] > 0, lambda s: jnp.tanh(s @ w), lambda s: jnp.sin(s @ v), jnp.concatenate([x, h])
        )
        return h, h

    exact_sites(step, [(INPUT_SIZE + 4, 4)] * 2)


def test_derivative_rules_of_the_user_are_kept():
    """A straight-through sign has the derivative that its author gave it, not its body's."""

    @jax.custom_jvp
    def spike(z):
        return jnp.sign(z)

    spike.defjvp(lambda primals, tangents: (spike(*primals), tangents[0] / (1 + primals[0] ** 2)))

    def step(params, h, x):
        h = 0.5 * h + spike(jnp.concatenate([x, h]) @ params[0])
        return h, h

    (site,) = exact_sites(step, [(INPUT_SIZE + 4, 4)])
    assert site.columns is not None


def test_a_derivative_rule_around_a_product_is_not_looked_through():
    """What the rule says of the parameters could be anything: the parameter is named, and right."""

    @jax.custom_jvp
    def product(w, v):
        return v @ w

    product.defjvp(lambda primals, tangents: (product(*primals), 2 * primals[1] @ tangents[0]))

    def step(params, h, x):
        h = jnp.tanh(product(params[0], jnp.concatenate([x, h])))
        return h, h

    cell = make_cell([(INPUT_SIZE + 4, 4)], step)
    linearizer, _ = assert_linearization_is_the_jacobian(cell, inputs())
    assert "custom_jvp_call at test_linearizer.py" in linearizer.structure.problems[0]


def test_sums_with_a_skip_connection_are_cut_after_the_bias():
    def step(params, h, x):
        w, b = params
        whole = jnp.concatenate([h, h]) + jnp.concatenate([b, b])
        left, right = jnp.split(whole, 2)
        h = jnp.tanh(left * right + x @ w)
        return h, h

    exact_sites(step, [(INPUT_SIZE, 4), (4,)])


def test_elementwise_cells_need_no_jacobian_of_n_rows():
    """On the jaxpr: nothing in the linearization of an LSTM is batched over its n rows."""
    n = 23  # a prime, so that no other size is a multiple of it
    cell = cells.lstm(input_size=INPUT_SIZE, hidden_size=n)
    linearizer = make_linearizer(cell, inputs()[0], BATCH_SIZE)

    def multiplied_out(*xs):
        linearization = linearizer.linearize(*xs)
        return linearization, linearization.jacobian.blocks

    jaxpr = jax.make_jaxpr(multiplied_out)(
        cell.init(jax.random.key(0)),
        jax.tree.map(lambda c: jnp.zeros((BATCH_SIZE, *c.shape)), cell.initial_carry()),
        inputs(),
        jnp.ones(BATCH_SIZE),
    )
    text = str(jaxpr)
    # J itself is [B, 2n, n]; a vmapped Jacobian would have had gates of [B, 2n, 4n] or [2n, B, 4n].
    assert f"[{BATCH_SIZE},{2 * n},{n}]" in text
    assert f"[{BATCH_SIZE},{2 * n},{4 * n}]" not in text
    assert f"[{2 * n},{BATCH_SIZE},{4 * n}]" not in text
