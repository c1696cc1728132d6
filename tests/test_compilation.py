import jax
import jax.numpy as jnp
import numpy as np

import kfrtrl_jax as kf
from kfrtrl_jax._src.xla import products

BATCH, N = 3, 4


def counted(function, *shapes):
    return products(jax.make_jaxpr(function)(*map(jnp.zeros, shapes)).jaxpr)


def test_products_are_counted_by_kind():
    jacobian, factor = (BATCH, N, N), (BATCH, N, 5)
    assert counted(jnp.matmul, jacobian, factor) == (BATCH * N * N * 5, 0)
    assert counted(jnp.matmul, (7, N), (N, 5)) == (0, 7 * N * 5)
    # A batch of products with one vector each is bound by memory.
    assert counted(lambda j, v: jnp.einsum("bij,bj->bi", j, v), jacobian, (BATCH, N)) == (
        0,
        BATCH * N * N,
    )


def test_products_in_loops_and_calls_count():
    def function(w, j):
        step = jax.jit(lambda x: x @ w)
        x, _ = jax.lax.scan(lambda x, _: (step(x), None), jnp.ones((2, N)), length=10)
        return x, jax.lax.cond(w[0, 0] > 0, lambda: j @ j, lambda: j)

    assert counted(function, (N, N), (BATCH, N, N)) == (BATCH * N**3, 10 * 2 * N * N)


def test_jit_computes_the_same():
    x = jax.random.normal(jax.random.key(0), (BATCH, N, N))
    function = kf.jit(lambda x: (x @ x, jnp.sum(x * x, axis=(1, 2))))
    for result, expected in zip(function(x), (x @ x, jnp.sum(x * x, axis=(1, 2)))):
        np.testing.assert_allclose(result, expected, rtol=1e-12)
    compiled = function.lower(jax.eval_shape(lambda: x)).compile()
    np.testing.assert_allclose(compiled(x)[0], x @ x, rtol=1e-12)


def test_jit_donates():
    x = jnp.ones(8)
    kf.jit(lambda x: x + 1, donate_argnums=0)(x)
    assert x.is_deleted()
