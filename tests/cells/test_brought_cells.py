"""Cells as users bring them, each against `jax.jacobian` of the user's own function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax._src.matrices import Banded
from kfrtrl_jax.linearization import make_linearizer
from tests.linearization.test_linearizer import assert_linearization_is_the_jacobian, inputs
from tests.trajectories import BATCH_SIZE, INPUT_SIZE, influence_rows, push_all, run

N = 4


def normal(key, **shapes):
    keys = jax.random.split(key, len(shapes))
    return {
        name: 0.6 * jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items())
    }


def linear_recurrent_unit():
    """A complex diagonal recurrence in real and imaginary parts (Orvieto et al., 2023)."""

    def init(key):
        return normal(key, nu=(N,), theta=(N,), real=(INPUT_SIZE, N), imaginary=(INPUT_SIZE, N))

    def step(params, carry, x):
        re, im = carry
        size = jnp.exp(-jnp.exp(params["nu"]))
        cos, sin = size * jnp.cos(params["theta"]), size * jnp.sin(params["theta"])
        gain = jnp.sqrt(1 - size**2)
        new_re = cos * re - sin * im + gain * (x @ params["real"])
        new_im = sin * re + cos * im + gain * (x @ params["imaginary"])
        return (new_re, new_im), new_re

    return cells.from_function(step, init, (jnp.zeros(N), jnp.zeros(N)))


def peephole_lstm():
    def init(key):
        return normal(key, w=(INPUT_SIZE, 4 * N), v=(N, 4 * N), b=(4 * N,), p=(3, N))

    def step(params, carry, x):
        c, h = carry
        i, f, g, o = jnp.split(x @ params["w"] + h @ params["v"] + params["b"], 4)
        p = params["p"]
        c_new = jax.nn.sigmoid(f + p[0] * c) * c + jax.nn.sigmoid(i + p[1] * c) * jnp.tanh(g)
        h = jax.nn.sigmoid(o + p[2] * c_new) * jnp.tanh(c_new)
        return (c_new, h), h

    return cells.from_function(step, init, (jnp.zeros(N), jnp.zeros(N)))


def fast_slow():
    """Two fast cells in a row with a slow one between them (Mujika, Meier and Steger, 2017)."""

    def init(key):
        return normal(
            key,
            first=(INPUT_SIZE + N, N),
            slow=(2 * N, N),
            second=(2 * N + 1, N),
        )

    def step(params, carry, x):
        fast, slow = carry
        fast = jnp.tanh(jnp.concatenate([x, fast]) @ params["first"])
        slow = 0.9 * slow + 0.1 * jnp.tanh(jnp.concatenate([fast, slow]) @ params["slow"])
        fast = jnp.tanh(jnp.concatenate([slow, fast, jnp.ones(1)]) @ params["second"])
        return (fast, slow), fast

    return cells.from_function(step, init, (jnp.zeros(N), jnp.zeros(N)))


def weight_normalized():
    def init(key):
        return normal(key, direction=(INPUT_SIZE + N, N), size=(N,))

    def step(params, h, x):
        v = params["direction"]
        w = params["size"] * v / jnp.linalg.norm(v, axis=0)
        h = jnp.tanh(jnp.concatenate([x, h]) @ w)
        return h, h

    return cells.from_function(step, init, jnp.zeros(N))


BROUGHT = {
    "linear_recurrent_unit": linear_recurrent_unit,
    "peephole_lstm": peephole_lstm,
    "fast_slow": fast_slow,
    "weight_normalized": weight_normalized,
}


@pytest.mark.parametrize("name", BROUGHT)
def test_linearization_of_a_brought_cell_is_its_jacobian(name):
    linearizer, _ = assert_linearization_is_the_jacobian(BROUGHT[name](), inputs())
    assert linearizer.structure.problems == ()


def test_diagonal_recurrences_are_exact_and_cost_no_matrix():
    cell = linear_recurrent_unit()
    trajectory = run(cell, 8)
    _, linearization = assert_linearization_is_the_jacobian(cell, inputs())
    assert all(isinstance(block, Banded) for block in linearization.jacobian.blocks)
    cotangents = jax.random.normal(jax.random.key(1), (3, BATCH_SIZE, 2 * N))
    kf, exact = (
        influence_rows(e, trajectory, push_all(e, trajectory, jax.random.key(2)), cotangents)
        for e in (estimators.kf_rtrl(), estimators.rtrl())
    )
    # Leaves in order: imaginary, nu, real, theta; the recurrence's own are kept without noise.
    ends = np.cumsum([INPUT_SIZE * N, N, INPUT_SIZE * N, N])
    theta = slice(ends[2], ends[3])
    np.testing.assert_allclose(kf[:, theta], exact[:, theta], atol=1e-12)


def test_dropout_with_its_key_in_the_carry():
    def step(params, carry, x):
        h, key = carry
        key, mask_key = jax.random.split(key)
        mask = jax.random.bernoulli(mask_key, 0.5, h.shape)
        h = jnp.tanh(jnp.concatenate([x, jnp.where(mask, h, 0)]) @ params["w"])
        return (h, key), h

    cell = cells.from_function(
        step,
        lambda key: normal(key, w=(INPUT_SIZE + N, N)),
        lambda: (jnp.zeros(N), jax.random.key(0)),
    )
    linearizer = make_linearizer(cell, inputs()[0], BATCH_SIZE)
    assert linearizer.structure.problems == ()
    params = cell.init(jax.random.key(1))
    carry = (jnp.ones((BATCH_SIZE, N)), jax.random.split(jax.random.key(2), BATCH_SIZE))
    linearization = linearizer.linearize(params, carry, inputs(), jnp.ones(BATCH_SIZE))
    for lane in range(BATCH_SIZE):

        def new_state(h, lane=lane):
            return step(params, (h, carry[1][lane]), inputs()[lane])[0][0]

        np.testing.assert_allclose(
            linearization.jacobian.dense()[lane],
            jax.jacobian(new_state)(carry[0][lane]),
            atol=1e-12,
        )


def test_an_equinox_cell():
    equinox = pytest.importorskip("equinox", reason="Equinox is not installed")
    module = equinox.nn.LSTMCell(INPUT_SIZE, N, key=jax.random.key(0))
    params, static = equinox.partition(module, equinox.is_inexact_array)

    def step(params, carry, x):
        h, c = equinox.combine(params, static)(x, carry)
        return (h, c), h

    cell = cells.from_function(step, lambda key: params, (jnp.zeros(N), jnp.zeros(N)))
    linearizer, _ = assert_linearization_is_the_jacobian(cell, inputs())
    assert [s.input_size for s in linearizer.structure.sites] == [INPUT_SIZE + N + 1]
