"""The linearization of a cell beside `jax.jacobian` of its step."""

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax.linearization import make_linearizer
from tests.helpers.interpreter import evaluated
from tests.trajectories import BATCH_SIZE, INPUT_SIZE, flat


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
    n = linearizer.structure.state_size

    def found(params, carry, x):
        linearization = linearizer.linearize(params, carry, x, keep)
        jacobian = linearization.jacobian
        ways = [jacobian.dense()]
        if jacobian.products:
            ways.append(jacobian.times_few(jnp.broadcast_to(jnp.eye(n), ways[0].shape)))

        def pulled(lane, i):
            sites = linearization.sites
            return tuple(s.inputs[lane].T @ s.derivatives.dense()[lane, :, i] for s in sites)

        blocks = [[pulled(lane, i) for i in range(n)] for lane in range(BATCH_SIZE)]
        gradients = [[linearizer.gradient(params, b) for b in rows] for rows in blocks]
        return linearization, ways, jacobian.diagonal(), gradients

    def expected(params, carry, x):
        def new_state(params, carry, x):
            return flat(cell.step(params, carry, x)[0])

        here = [jax.tree.map(lambda a, b=b: a[b], (carry, x)) for b in range(BATCH_SIZE)]
        return [jax.jacobian(new_state, argnums=(0, 1))(params, *lane) for lane in here]

    linearization, ways, diagonal, gradients = evaluated(found, params, carry, x)
    for jacobian in ways[1:]:
        np.testing.assert_allclose(jacobian, ways[0], atol=atol)
    np.testing.assert_allclose(diagonal, np.diagonal(ways[0], axis1=1, axis2=2), atol=atol)
    for lane, (by_params, by_carry) in enumerate(evaluated(expected, params, carry, x)):
        whole = np.concatenate([b.reshape(n, -1) for b in jax.tree.leaves(by_carry)], axis=1)
        np.testing.assert_allclose(ways[0][lane], keep[lane] * whole, atol=atol)
        for i in range(n):
            jax.tree.map(
                lambda got, want, i=i: np.testing.assert_allclose(got, want[i], atol=atol),
                gradients[lane][i],
                by_params,
            )
    return linearizer, linearization


def inputs():
    """Of all lanes, [B, input]."""
    return jax.random.normal(jax.random.key(5), (BATCH_SIZE, INPUT_SIZE))
