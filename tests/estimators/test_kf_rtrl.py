import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from tests.helpers.nights import some
from tests.trajectories import SMALL_CELLS, influence_rows, push_all, run

STEPS = 8


def next_linearization(trajectory, t):
    return jax.jit(trajectory.linearizer.linearize)(
        trajectory.params,
        jax.tree.map(lambda c: c[t], trajectory.carries),
        trajectory.inputs[t],
        trajectory.keep[t],
    )


def lane_norm(x):
    return jnp.sqrt(jnp.sum(x.reshape(x.shape[0], -1) ** 2, axis=1))


@pytest.mark.parametrize(
    ("cell", "orthogonal"),
    some(itertools.product(["vanilla", "lstm", "recurrent_highway"], [True, False]), 3),
)
def test_one_step_noise_equals_its_formula(cell, orthogonal):
    """|u' (x) A' - (u (x) JA + a (x) D)|^2 = 2 |u||JA||D||a| + 2 <u,a><JA,D>, whatever the signs.

    The second term vanishes where u is orthogonal to a: the noise is then the paper's formula.
    """
    trajectory = run(SMALL_CELLS[cell], STEPS)
    estimator = estimators.kf_rtrl()
    state = push_all(estimator, trajectory, jax.random.key(1))
    linearization = next_linearization(trajectory, STEPS - 1)
    (site,) = linearization.sites
    u = state.input_factor[0]
    if orthogonal:
        along = jnp.sum(u * site.inputs[:, 0], axis=1) / jnp.sum(site.inputs[:, 0] ** 2, axis=1)
        u = u - along[:, None] * site.inputs[:, 0]
        state = state._replace(input_factor=(u,))
    carried, d = (
        linearization.jacobian.times(jnp.concatenate(state.state_factor[0], axis=1)),
        site.derivatives.dense()[:, 0],
    )
    target = jnp.einsum("bm,bng->bmng", u, carried) + jnp.einsum(
        "bm,bng->bmng", site.inputs[:, 0], d
    )

    @jax.jit
    @jax.vmap
    def squared_errors(key):
        new = estimator.push(state, linearization, key)
        product = jnp.einsum(
            "bm,bng->bmng", new.input_factor[0], jnp.concatenate(new.state_factor[0], axis=1)
        )
        return lane_norm(product - target) ** 2

    expected = 2 * lane_norm(u) * lane_norm(carried) * lane_norm(d) * lane_norm(site.inputs[:, 0])
    if not orthogonal:
        overlap = jnp.sum(u * site.inputs[:, 0], axis=1) * jnp.sum(carried * d, axis=(1, 2))
        expected = expected + 2 * overlap
    errors = squared_errors(jax.random.split(jax.random.key(2), 16))
    np.testing.assert_allclose(errors, jnp.broadcast_to(expected, errors.shape), rtol=1e-9)


def test_factors_of_a_pair_have_equal_norms_after_a_reset():
    trajectory = run(SMALL_CELLS["vanilla"], STEPS)
    estimator = estimators.kf_rtrl()
    linearization = next_linearization(trajectory, 0)  # keep is 0: every lane starts anew
    state = push_all(estimator, trajectory, jax.random.key(1))
    new = estimator.push(state, linearization, jax.random.key(3))
    (site,) = linearization.sites
    exact = jnp.einsum("bm,bng->bmng", site.inputs[:, 0], site.derivatives.dense()[:, 0])
    got = jnp.einsum(
        "bm,bng->bmng", new.input_factor[0], jnp.concatenate(new.state_factor[0], axis=1)
    )
    np.testing.assert_allclose(got, exact, atol=1e-12)
    np.testing.assert_allclose(
        jnp.linalg.norm(new.input_factor[0], axis=1),
        jnp.linalg.norm(new.state_factor[0][0].reshape(2, -1), axis=1),
    )


@pytest.mark.parametrize("factory", [estimators.kf_rtrl, estimators.uoro])
def test_saturated_cell_gives_zeros_and_no_nan(factory):
    """D = 0 and J = 0: the influence dies exactly, and the estimator lives on."""
    cell = SMALL_CELLS["vanilla"]
    trajectory = run(cell, STEPS)
    saturated = trajectory._replace(params=jax.tree.map(lambda w: 1e6 * w, trajectory.params))
    linearization = next_linearization(saturated, STEPS - 1)
    assert jnp.all(linearization.sites[0].derivatives.dense() == 0)
    estimator = factory()
    state = push_all(estimator, trajectory, jax.random.key(1))
    state = estimator.push(state, linearization, jax.random.key(2))
    cotangents = jnp.ones((1, 2, 4))
    assert jnp.all(influence_rows(estimator, trajectory, state, cotangents) == 0)
    state = estimator.push(state, next_linearization(trajectory, 3), jax.random.key(3))
    rows = influence_rows(estimator, trajectory, state, cotangents)
    assert jnp.all(jnp.isfinite(rows))
    assert jnp.any(rows != 0)


def test_sites_with_a_constant_input_are_exact():
    """A bias alone needs no factoring: its influence is RTRL's."""
    cell = SMALL_CELLS["vanilla"]

    def step(params, h, x):
        h = jnp.tanh(jnp.sum(x) + jnp.roll(h, 1) * 0.9 + params["bias"])
        return h, h

    biased = cell._replace(init=lambda key: {"bias": jax.random.normal(key, (4,))}, step=step)
    trajectory = run(biased, STEPS)
    cotangents = jax.random.normal(jax.random.key(4), (3, 2, 4))
    rows = [
        influence_rows(e, trajectory, push_all(e, trajectory, jax.random.key(5)), cotangents)
        for e in (estimators.kf_rtrl(), estimators.rtrl())
    ]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-12)
