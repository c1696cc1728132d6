import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells
from kfrtrl_jax.base import Cell
from kfrtrl_jax.linearization import make_linearizer
from tests.helpers.nights import some
from tests.trajectories import SMALL_CELLS, flat

STEPS, LANES, INPUT, HIDDEN = 5, 3, 3, 4


def _hidden():
    return jnp.zeros(HIDDEN)


def _odd_init(key):
    shapes = {"w": (HIDDEN, HIDDEN), "table": (7, HIDDEN), "scale": (HIDDEN,), "bias": (HIDDEN,)}
    keys = jax.random.split(key, len(shapes))
    return {name: 0.5 * jax.random.normal(k, shapes[name]) for name, k in zip(shapes, keys)}


def _odd_step(params, h, x):
    """Weights used twice and once transposed, element-wise ones, a subtracted bias, a look-up."""
    token = (jnp.abs(x[0]) * 10).astype(int) % 7
    gate = jax.nn.sigmoid(params["scale"] * h + params["w"].T @ jnp.sin(h))
    h = jnp.tanh(h @ params["w"] + params["table"][token] - params["bias"]) * gate + 0.1 * h
    return h, h**2


def _skipping_step(params, h, x):
    """The output reads a summand of a pre-activation, and parameters by itself."""
    summand = h @ params["w"]
    new = jnp.tanh(summand + params["scale"] * h + params["bias"])
    return new, new * params["scale"] + summand + x[0] * params["table"][0]


def _clamping_step(params, h, x):
    """A parameter enters in an operation of no known structure, and in a known one too."""
    new, output = _odd_step(params, h, x)
    return jnp.maximum(new, params["bias"]), output


CELLS = {
    **SMALL_CELLS,
    "lru": cells.lru(input_size=INPUT, hidden_size=HIDDEN),
    "sparse": cells.gru(input_size=INPUT, hidden_size=HIDDEN, sparsity=0.5),
    "odd": Cell(_odd_init, _hidden, _odd_step),
    "skipping": Cell(_odd_init, _hidden, _skipping_step),
    "clamping": Cell(_odd_init, _hidden, _clamping_step),
}


@pytest.mark.parametrize(
    "name", ["odd", "clamping", *some(c for c in CELLS if c not in ("odd", "clamping"))]
)
def test_gradient_by_taps_is_that_by_the_parameters(name):
    cell = CELLS[name]
    linearizer = make_linearizer(cell, jnp.zeros(INPUT), LANES)
    taps = linearizer.taps
    params = cell.init(jax.random.key(1))
    xs = jax.random.normal(jax.random.key(2), (STEPS, LANES, INPUT))
    start = jax.tree.map(
        lambda c: jax.random.normal(jax.random.key(3), (LANES, *c.shape), c.dtype),
        cell.initial_carry(),
    )

    def loss(carry, outputs):
        return jnp.sum(jnp.sin(outputs)) + sum(jnp.sum(jnp.cos(c)) for c in jax.tree.leaves(carry))

    def by_parameters(params):
        step = jax.vmap(lambda c, x: cell.step(params, c, x))
        return loss(*jax.lax.scan(lambda c, x: step(c, x), start, xs))

    def by_taps(zeros, live):
        def one(carry, step):
            advance = jax.vmap(lambda c, x, t: taps.step(params, live, c, x, t))
            carry, output, data = advance(carry, *step)
            return carry, (output, data)

        carry, (outputs, data) = jax.lax.scan(one, start, (xs, zeros))
        return loss(carry, outputs), data

    value, expected = jax.value_and_grad(by_parameters)(params)
    zeros = [jnp.zeros((STEPS, LANES, *z.shape), z.dtype) for z in taps.zeros]
    (tapped, data), (cotangents, live) = jax.value_and_grad(by_taps, argnums=(0, 1), has_aux=True)(
        zeros, taps.live_leaves(params)
    )
    gradient = linearizer.gradient(params, taps.site_gradients(data, cotangents), live)
    np.testing.assert_allclose(tapped, value, rtol=1e-12)
    assert jnp.linalg.norm(flat(expected)) > 0.1
    np.testing.assert_allclose(flat(gradient), flat(expected), atol=1e-12)


def live_parameters(name):
    leaves = sorted(CELLS[name].init(jax.random.key(0)))
    linearizer = make_linearizer(CELLS[name], jnp.zeros(INPUT), LANES)
    return {leaves[i] for i in linearizer.taps.live}


def test_only_what_goes_another_way_is_differentiated_in_the_loop():
    assert live_parameters("odd") == set()
    assert live_parameters("skipping") == {"w", "scale", "table"}
    assert live_parameters("clamping") == {"bias"}
