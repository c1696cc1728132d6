import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from tests.helpers.interpreter import evaluated
from tests.linearization.references import assert_exact, random_point, with_fixed_parameters
from tests.trajectories import INPUT_SIZE, influence_rows, push_all, run

SIZES = {"input_size": INPUT_SIZE, "hidden_size": 4, "num_heads": 2}
T = 5


def test_linearization_and_rtrl_are_exact():
    cell = with_fixed_parameters(cells.slstm(**SIZES))
    point = random_point(cell, INPUT_SIZE, steps=4)
    c, n, m, h = point.carry
    linearizer = assert_exact(cell, point._replace(carry=(c, jnp.abs(n), m, h)), at_once=True)
    (site,) = linearizer.structure.sites
    assert site.weights_mask.density == (4 + 4 / 2) / 8  # W and b, and the blocks of R


def test_snap_of_high_order_is_rtrl_with_the_entries_of_each_head_alone():
    trajectory = run(cells.slstm(**SIZES), 3)
    cotangents = jax.random.normal(jax.random.key(0), (3, 2, 16))

    def found(key):
        states = [push_all(e, trajectory, key) for e in (estimators.snap(10), estimators.rtrl())]
        return states, [
            influence_rows(e, trajectory, state, cotangents)
            for e, state in zip((estimators.snap(10), estimators.rtrl()), states)
        ]

    (snap, rtrl), (of_snap, of_rtrl) = evaluated(found, jax.random.key(0))
    np.testing.assert_allclose(of_snap, of_rtrl, atol=1e-12)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(state)) for state in (snap, rtrl)]
    # A weight reaches half of the state.
    assert sizes[0] <= 0.5 * sizes[1]


def outputs_without_stabilizer(params, xs, forget_gate):
    """The equations with C and N, head by head."""
    c, n, h = jnp.zeros(4), jnp.zeros(4), jnp.zeros(4)
    found = []
    for x in xs:
        gates = (x @ params["input"] + params["bias"]).reshape(4, 4)
        for gate in range(4):
            for head in range(2):
                units = slice(2 * head, 2 * head + 2)
                product = h[units] @ params["recurrent"][gate, head]
                gates = gates.at[gate, units].add(product)
        i, f, g, o = gates
        forget = jax.nn.sigmoid(f) if forget_gate == "sigmoid" else jnp.exp(f)
        c = forget * c + jnp.exp(i) * jnp.tanh(g)
        n = forget * n + jnp.exp(i)
        h = jax.nn.sigmoid(o) * c / n
        found.append(h)
    return jnp.stack(found)


def outputs(cell, params, xs):
    carry, found = cell.initial_carry(), []
    for x in xs:
        carry, output = cell.step(params, carry, x)
        found.append(output)
    return jnp.stack(found)


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_outputs_and_gradients_are_those_without_a_stabilizer(forget_gate):
    cell = cells.slstm(**SIZES, forget_gate=forget_gate, init_scale=4.0)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (T, INPUT_SIZE))
    weights = jax.random.normal(jax.random.key(2), (T, 4))

    def of(outputs):
        def loss(params):
            found = outputs(params)
            return jnp.sum(weights * found), found

        (_, found), gradient = evaluated(jax.value_and_grad(loss, has_aux=True), params)
        return {"outputs": found, **gradient}

    got = of(lambda params: outputs(cell, params, xs))
    want = of(lambda params: outputs_without_stabilizer(params, xs, forget_gate))
    for name, value in want.items():
        assert np.abs(value).max() > 0.01
        np.testing.assert_allclose(got[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("size", [1e3, -1e3])
def test_gates_of_any_size_are_finite(size):
    cell = cells.slstm(**SIZES, forget_gate="exp")
    params = cell.init(jax.random.key(0))
    params["bias"] = params["bias"].at[:4].set(size)
    xs = jax.random.normal(jax.random.key(1), (T, INPUT_SIZE))

    def loss(params):
        found = outputs(cell, params, xs)
        return jnp.sum(found), found

    (_, found), gradient = evaluated(jax.value_and_grad(loss, has_aux=True), params)
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient.values())
    assert np.all(np.abs(found) > 1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, r"num_heads must be a divisor of hidden_size \(4\), got 3"),
        ({"num_heads": 0}, "num_heads must be a divisor"),
        ({"forget_gate": "tanh"}, 'forget_gate must be "sigmoid" or "exp", got \'tanh\''),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cells.slstm(**{**SIZES, **options})
