"""Random cells: their linearization is their Jacobian, or their parameters are named as a problem.

KFRTRL_RANDOM_CELLS sets how many of each kind are drawn (the suite draws a few; 2000 are a night's
check of the same properties).
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kfrtrl_jax import estimators
from kfrtrl_jax.base import Cell
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.linearization import make_linearizer
from tests.trajectories import flat

N, X = 4, 3
DRAWS = settings(
    max_examples=int(os.environ.get("KFRTRL_RANDOM_CELLS", "10")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="KFRTRL_RANDOM_CELLS" not in os.environ,
)


class Parameters:
    """Hands out parameters by name while a step runs, and records their shapes in a dry run."""

    def __init__(self, values=None):
        self.values, self.shapes = values, {}

    def __call__(self, name, *shape):
        self.shapes[name] = shape
        return jnp.ones(shape) if self.values is None else self.values[name]


def layer_norm(v):
    return (v - v.mean()) / jnp.sqrt(v.var() + 0.1)


def scanned(p, name, v, _):
    w = p(name, N, N)
    return jax.lax.scan(lambda s, _: (jnp.tanh(s @ w), None), v, None, length=2)[0]


# Each takes (parameters, a fresh name, two vectors of data) to a vector of data, all of N elements.
SUPPORTED = {
    "product": lambda p, k, v, w: v @ p(k, N, N),
    "product_from_the_left": lambda p, k, v, w: p(k, N, N) @ v,
    "transposed": lambda p, k, v, w: p(k, N, N).T @ v,
    "fused": lambda p, k, v, w: jnp.multiply(*jnp.split(v @ p(k, N, 2 * N), 2)),
    "sliced": lambda p, k, v, w: v @ p(k, N, 2 * N)[:, 1 : N + 1],
    "concatenated_input": lambda p, k, v, w: jnp.concatenate([v, w]) @ p(k, 2 * N, N),
    "two_matrices": lambda p, k, v, w: v @ p(k, N, N) + w @ p(k + "b", N, N) + p(k + "c", N),
    "split_sums": lambda p, k, v, w: sum(
        a * b
        for a, b in zip(jnp.split(v @ p(k, N, 2 * N), 2), jnp.split(w @ p(k + "b", N, 2 * N), 2))
    ),
    "shared": lambda p, k, v, w: v @ p("shared", N, N),
    "tied": lambda p, k, v, w: v @ p("shared", N, N).T,
    "low_rank": lambda p, k, v, w: v @ (p(k, N, 2) @ p(k + "b", 2, N)),
    "normalized": lambda p, k, v, w: v @ (p(k, N, N) / jnp.linalg.norm(p(k, N, N))),
    "scaled": lambda p, k, v, w: jnp.exp(p(k)) * v,
    "bias": lambda p, k, v, w: v + p(k, N),
    "negative_bias": lambda p, k, v, w: p(k, N) - v,
    "peephole": lambda p, k, v, w: p(k, N) * v + w @ p(k + "b", N, N),
    "quotient": lambda p, k, v, w: v / (1 + p(k, N) ** 2),
    "rows": lambda p, k, v, w: (jnp.stack([v, w]) @ p(k, N, N)).sum(0),
    "heads": lambda p, k, v, w: jnp.einsum("hi,hij->hj", v.reshape(2, 2), p(k, 2, 2, 2)).reshape(
        -1
    ),
    "vmapped": lambda p, k, v, w: jax.vmap(lambda row: row @ v)(p(k, N, N)),
    "look_up": lambda p, k, v, w: p(k, 3, N)[(v[0] > 0).astype(int)] * w,
    "choice": lambda p, k, v, w: jnp.where(v > 0, p(k, N), w),
    "conditional": lambda p, k, v, w: jax.lax.cond(
        v[0] > 0, lambda s: s @ p(k, N, N), lambda s: s + p(k + "b", N), w
    ),
    "scan": scanned,
    "loop": lambda p, k, v, w: jax.lax.fori_loop(0, 2, lambda i, s: jnp.tanh(s @ p(k, N, N)), v),
    "solve": lambda p, k, v, w: jnp.linalg.solve(jnp.eye(N) + 0.1 * p(k, N, N) * v, w),
    "remat": lambda p, k, v, w: jax.checkpoint(lambda m, s: jnp.sin(s @ m))(p(k, N, N), v),
    "jit": lambda p, k, v, w: jax.jit(lambda m, s: s @ m)(p(k, N, N), v),
    "tanh": lambda p, k, v, w: jnp.tanh(v),
    "sigmoid": lambda p, k, v, w: jax.nn.sigmoid(v) * w,
    "relu": lambda p, k, v, w: jax.nn.relu(v) + 0.1 * v,
    "silu": lambda p, k, v, w: jax.nn.silu(v),
    "gate": lambda p, k, v, w: jax.nn.sigmoid(v) * v + (1 - jax.nn.sigmoid(v)) * w,
    "roll": lambda p, k, v, w: jnp.roll(v, 1) * w,
    "reverse": lambda p, k, v, w: v[::-1] + w,
    "halves": lambda p, k, v, w: jnp.concatenate([v[2:] * w[:2], w[:2]]),
    "softmax": lambda p, k, v, w: jax.nn.softmax(v),
    "layer_norm": lambda p, k, v, w: layer_norm(v) * p(k, N),
    "mean": lambda p, k, v, w: v.mean() + w,
    "attention": lambda p, k, v, w: jax.nn.softmax(jnp.outer(v, w)) @ w,
    "stopped": lambda p, k, v, w: jax.lax.stop_gradient(v) * w,
    "masked": lambda p, k, v, w: v @ (p(k, N, N) * (np.arange(N * N) % 3 == 0).reshape(N, N)),
    "triangular": lambda p, k, v, w: jnp.tril(p(k, N, N), -1) @ v + jnp.triu(p(k + "b", N, N)) @ w,
    "sparse": lambda p, k, v, w: jnp.zeros((N, N)).at[:2, [0, 3]].set(jnp.tanh(p(k, 2, 2))) @ v,
    "padded": lambda p, k, v, w: (
        w * jnp.pad(p(k, 2), (1, 1)) + jnp.concatenate([v[:1], p(k + "b", 3)])
    ),
    "product_of_sums": lambda p, k, v, w: jnp.tanh(v @ p(k, N, N) + 1) * (w - 2.0),
}


@jax.custom_jvp
def own_rule(w, v):
    return v @ w


own_rule.defjvp(lambda x, t: (own_rule(*x), 3 * x[1] @ t[0] + t[1] @ x[0]))

UNSUPPORTED = {
    "max": lambda p, k, v, w: jnp.maximum(p(k, N), v),
    "power": lambda p, k, v, w: (1 + v**2) ** p(k, N),
    "own_rule": lambda p, k, v, w: own_rule(p(k, N, N), v),
    "logaddexp": lambda p, k, v, w: jnp.logaddexp(p(k, N), v),
    "convolution": lambda p, k, v, w: jnp.convolve(v, p(k, 3), mode="same"),
}


def programs(operations):
    index = st.integers(0, 7)
    return st.lists(st.tuples(st.sampled_from(operations), index, index), min_size=2, max_size=6)


def make_cell(program, operations):
    """A cell of two carry leaves whose new values are the last two vectors that the program makes."""

    def run(p, carry, x):
        c, h = carry
        vectors = [h, c, jnp.tanh(x @ p("input", X, N))]
        for i, (name, first, second) in enumerate(program):
            v, w = (vectors[-1 - j % len(vectors)] for j in (first, second))
            vectors.append(operations[name](p, f"{i}", v, w))
        return (vectors[-2], jnp.tanh(vectors[-1])), vectors[-1]

    dry = Parameters()
    run(dry, (jnp.ones(N), jnp.ones(N)), jnp.ones(X))

    def init(key):
        keys = jax.random.split(key, len(dry.shapes))
        return {
            name: 0.7 * jax.random.normal(k, shape)
            for k, (name, shape) in zip(keys, sorted(dry.shapes.items()))
        }

    return Cell(
        init,
        lambda: (jnp.zeros(N), jnp.zeros(N)),
        lambda params, carry, x: run(Parameters(params), carry, x),
    )


def assert_zero_outside(mask, matrix):
    assert mask is None or not np.any(np.asarray(matrix)[~mask.array])


def check(cell):
    """The linearizer, once J and all gradients through the sites are compared with `jax.jacobian`.

    What the structure says is zero has to be: of J, and of the D of each site.
    """
    key_c, key_h, key_x = jax.random.split(jax.random.key(7), 3)
    params = cell.init(jax.random.key(3))
    carry = (jax.random.normal(key_c, (N,)), jax.random.normal(key_h, (N,)))
    x = jax.random.normal(key_x, (X,))
    linearizer = make_linearizer(cell, x, 1)

    @jax.jit
    def compare(params, carry, x):
        lanes = jax.tree.map(lambda leaf: leaf[None], (carry, x))
        linearization = linearizer.linearize(params, *lanes, jnp.ones(1))

        def pulled(i):
            blocks = tuple(
                jnp.outer(s.input[0], s.derivative.dense()[0, i]) for s in linearization.sites
            )
            return flat(linearizer.gradient(params, blocks))

        got = jax.vmap(pulled)(jnp.arange(2 * N))

        def new_state(params, carry):
            return flat(cell.step(params, carry, x)[0])

        by_params, by_carry = jax.jacobian(new_state, argnums=(0, 1))(params, carry)
        rows = jnp.concatenate([b.reshape(2 * N, -1) for b in jax.tree.leaves(by_params)], axis=1)
        columns = jnp.concatenate(jax.tree.leaves(by_carry), axis=1)
        derivatives = [site.derivative.dense()[0] for site in linearization.sites]
        return (linearization.jacobian.dense()[0], columns), (got, rows), derivatives

    *pairs, derivatives = compare(params, carry, x)
    for got, want in pairs:
        scale = 1 + np.abs(want).max()
        np.testing.assert_allclose(got / scale, want / scale, atol=1e-10)
    structure = linearizer.structure
    assert_zero_outside(structure.jacobian, pairs[0][0])
    for site, derivative in zip(structure.sites, derivatives):
        assert_zero_outside(site.derivative, derivative)
    return linearizer


@DRAWS
@given(programs(list(SUPPORTED)))
def test_random_cells_of_supported_operations(program):
    linearizer = check(make_cell(program, SUPPORTED))
    assert linearizer.structure.problems == ()


@DRAWS
@given(
    programs(list(SUPPORTED)),
    st.sampled_from(list(UNSUPPORTED)),
    st.integers(0, 7),
    st.integers(0, 7),
)
def test_random_cells_with_an_unsupported_operation_are_refused_and_never_wrong(
    program, name, first, second
):
    # The last operation makes the new h, so the unsupported one surely reaches the state.
    cell = make_cell([*program, (name, first, second)], SUPPORTED | UNSUPPORTED)
    linearizer = check(cell)
    with pytest.raises(UnsupportedCellError):
        estimators.kf_rtrl().init(linearizer.structure)
