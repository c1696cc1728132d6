"""Cells as users bring them, written in plain JAX."""

import jax
import jax.numpy as jnp

from kfrtrl_jax import cells
from tests.trajectories import INPUT_SIZE

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
