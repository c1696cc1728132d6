import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from kfrtrl_jax._src.estimators.reduction import by_signs as reduction
from kfrtrl_jax.linearization import make_linearizer
from tests.estimators.monte_carlo import deviations
from tests.estimators.test_kf_rtrl import next_linearization
from tests.trajectories import SMALL_CELLS, influence_rows, push_all, run

STEPS = 8


def gram(x):
    return x @ x.T


def random_pairs(rank, seed=0, m=12, n=20, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(seed), 2)
    return [
        jax.random.normal(k, (rank + 1, size), dtype) for k, size in zip(keys, (m, n), strict=True)
    ]


@jax.jit
def reduced(v, b, key):
    signs = jax.random.rademacher(key, (len(v),), v.dtype)
    x, y = reduction(gram(v), gram(b), signs)
    return x @ v, y @ b


@jax.jit
def squared_error(v, b, key):
    new_v, new_b = reduced(v, b, key)
    return jnp.sum((new_v.T @ new_b - v.T @ b) ** 2)


def least_noise(sigma):
    """The formula, in numpy; sigma in any order."""
    sigma = np.sort(np.asarray(sigma))
    best = max(k for k in range(2, len(sigma) + 1) if (k - 1) * sigma[k - 1] <= sigma[:k].sum())
    return sigma[:best].sum() ** 2 / (best - 1) - (sigma[:best] ** 2).sum()


def with_singular_values(sigma, seed=0):
    """Pairs whose sum of products has these singular values, in a basis that hides them."""
    r, keys = len(sigma), jax.random.split(jax.random.key(seed), 3)
    q_v, q_b = (
        jnp.linalg.qr(jax.random.normal(k, (size, r)))[0].T
        for k, size in zip(keys[:2], (12, 20), strict=True)
    )
    change = jax.random.normal(keys[2], (r, r))
    return change.T @ (jnp.asarray(sigma)[:, None] * q_v), jnp.linalg.inv(change) @ q_b


def test_ok_is_unbiased():
    assert np.max(np.abs(deviations(estimators.ok(2), SMALL_CELLS["gru"]))) < 4


@pytest.mark.parametrize("rank", [1, 3])
def test_mean_over_all_signs_is_the_sum(rank):
    v, b = random_pairs(rank)
    signs = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=rank + 1)))
    x, y = jax.jit(jax.vmap(reduction, in_axes=(None, None, 0)))(gram(v), gram(b), signs)
    products = np.einsum("sij,jm,sik,kn->smn", x, v, y, b, optimize=True)
    np.testing.assert_allclose(products.mean(axis=0), v.T @ b, atol=1e-12)
    assert np.min(np.linalg.norm(products - v.T @ b, axis=(1, 2))) > 0.1


@pytest.mark.parametrize("rank", [1, 3])
def test_noise_of_every_draw_equals_its_formula(rank):
    v, b = random_pairs(rank)
    sigma = np.linalg.svd(v.T @ b, compute_uv=False)[: rank + 1]
    errors = jax.vmap(lambda k: squared_error(v, b, k))(jax.random.split(jax.random.key(1), 32))
    np.testing.assert_allclose(errors, least_noise(sigma), rtol=1e-9)
    new_v, new_b = reduced(1e3 * v, 1e-5 * b, jax.random.key(2))
    np.testing.assert_allclose(np.linalg.norm(new_v, axis=1), np.linalg.norm(new_b, axis=1))


@pytest.mark.parametrize(
    "sigma",
    [
        [1.0, 1.0, 1.0, 1.0],
        [1.0, 1.0, 1.0, 1.0 + 1e-13],
        [1e-6, 1e-6, 1.0, 2.0],
        [1e-3, 1.0, 1.0, 50.0],
        [2.0, 3.0, 3.0, 3.0],
    ],
)
def test_noise_equals_its_formula_where_some_are_kept_or_equal(sigma):
    v, b = with_singular_values(sigma)
    error = squared_error(v, b, jax.random.key(2))
    np.testing.assert_allclose(error, least_noise(sigma), rtol=1e-5)


def test_one_push_errs_by_the_formula():
    trajectory, estimator = run(SMALL_CELLS["lstm"], STEPS), estimators.ok(3)
    state = push_all(estimator, trajectory, jax.random.key(1))
    linearization = next_linearization(trajectory, STEPS - 1)
    (site,) = linearization.sites
    jacobian = linearization.jacobian.dense()
    target = jnp.einsum(
        "brm,bkn,bngr->bmkg", state.input_factors[0], jacobian, state.state_factors[0]
    ) + jnp.einsum("bm,bng->bmng", site.inputs[:, 0], site.derivatives.dense()[:, 0])
    new = jax.jit(estimator.push)(state, linearization, jax.random.key(2))
    product = jnp.einsum("brm,bngr->bmng", new.input_factors[0], new.state_factors[0])
    for error, lane in zip(np.asarray(product - target), np.asarray(target), strict=True):
        sigma = np.linalg.svd(lane.reshape(lane.shape[0], -1), compute_uv=False)[:4]
        np.testing.assert_allclose(np.sum(error**2), least_noise(sigma), rtol=1e-8)


def test_rank_one_has_no_more_noise_than_kf_rtrl():
    for seed in range(20):
        v, b = random_pairs(1, seed)
        # KF-RTRL's, whatever its signs: see its tests.
        theirs = 2 * np.prod(np.linalg.norm(v, axis=1)) * np.prod(np.linalg.norm(b, axis=1))
        theirs += 2 * (v[0] @ v[1]) * (b[0] @ b[1])
        assert 0 < squared_error(v, b, jax.random.key(2)) <= theirs * (1 + 1e-12)


def test_no_unbiased_reduction_found_has_less_noise():
    """Random ones L = diag(signs) diag(sigma)^1/2 X with unit rows, and what descent makes of them.

    They are unbiased for any X, with the noise sum_ij sigma_i sigma_j <x_i, x_j>^2 over i != j.
    """
    sigma = jnp.asarray([0.3, 0.8, 1.0, 1.2])
    v, b = with_singular_values(sigma)
    least = float(squared_error(v, b, jax.random.key(0)))

    def noise(x):
        x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        cross = jnp.outer(sigma, sigma) * (x @ x.T) ** 2
        return jnp.sum(cross) - jnp.sum(jnp.diag(cross))

    x = jax.random.normal(jax.random.key(3), (500, 4, 3))
    start = jax.vmap(noise)(x)
    step = jax.jit(jax.vmap(lambda x: x - 0.1 * jax.grad(noise)(x)))
    for _ in range(300):
        x = step(x)
    end = jax.vmap(noise)(x)
    assert jnp.min(start) >= least
    assert jnp.min(end) >= least - 1e-9
    assert jnp.min(end) < 1.001 * least  # descent gets there, so the comparison means something


def test_exact_where_the_rank_suffices():
    """r + 1 pairs whose sum has rank r: dependent v, dependent b, a zero v, or a zero b."""
    v, b = random_pairs(3)
    for broken_v, broken_b in [
        (v.at[3].set(v[0] - 2 * v[1]), b),
        (v, b.at[2].set(b[0] + b[3])),
        (v.at[1].set(0), b),
        (v, b.at[3].set(0)),
        (v.at[1:].set(0), b.at[2:].set(0)),
    ]:
        assert float(squared_error(broken_v, broken_b, jax.random.key(1))) < 1e-20


def test_exact_for_as_many_steps_as_the_rank():
    trajectory, estimator = run(SMALL_CELLS["vanilla"], 3), estimators.ok(3)
    cotangents = jax.random.normal(jax.random.key(4), (3, 2, 4))
    rows = [
        influence_rows(e, trajectory, push_all(e, trajectory, jax.random.key(5)), cotangents)
        for e in (estimator, estimators.rtrl())
    ]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-10)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12])
def test_single_precision_is_finite_and_close(scale):
    """Equal, near-equal, vanished and all-zero singular values, at any size that has squares."""
    for sigma in (
        [1, 1, 1, 1],
        [1, 1, 1 + 1e-7, 1],
        [0, 1, 1, 1],
        [0, 0, 0, 1],
        [0] * 4,
        [0, 1e-7, 1, 1],
    ):
        v, b = with_singular_values(jnp.asarray(sigma, float))
        v, b = (v * scale**0.5).astype(jnp.float32), (b * scale**0.5).astype(jnp.float32)
        new_v, new_b = reduced(v, b, jax.random.key(1))
        assert jnp.all(jnp.isfinite(new_v))
        assert jnp.all(jnp.isfinite(new_b))
        error = np.sum(np.asarray(new_v.T @ new_b - v.T @ b, float) ** 2) / scale**2
        assert error <= least_noise(sigma) + 1e-3


def test_two_thousand_pushes_in_single_precision_stay_finite():
    """With resets, saturated cells (D = 0), and repeated, hence dependent, inputs."""
    linearizer = make_linearizer(SMALL_CELLS["lstm"], jnp.zeros(3), 2)
    estimator = estimators.ok(4)
    params = SMALL_CELLS["lstm"].init(jax.random.key(0))

    def single(tree):
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def step(state, key):
        keys = jax.random.split(key, 4)
        saturation = jnp.where(jax.random.bernoulli(keys[0], 0.1), 1e6, 1.0)
        keep = 1.0 - jax.random.bernoulli(keys[1], 0.05, (2,))
        # Two inputs and two states only: factors meet inputs that they already hold.
        which = jax.random.randint(keys[2], (), 0, 2)
        carry = tuple(c[which] for c in carries)
        linearization = linearizer.linearize(
            jax.tree.map(lambda w: w * saturation, params), carry, inputs[which], keep
        )
        state = estimator.push(state, single(linearization), keys[3])
        return state, jnp.stack([jnp.sum(f**2) for f in jax.tree.leaves(state)])

    inputs, *carries = (
        jax.random.normal(jax.random.key(k), (2, 2, size)) for k, size in enumerate([3, 4, 4])
    )
    structure = linearizer.structure._replace(dtype=jnp.float32)
    keys = jax.random.split(jax.random.key(1), 2000)
    _, norms = jax.jit(lambda s: jax.lax.scan(step, s, keys))(estimator.init(structure))
    assert norms.dtype == jnp.float32
    assert jnp.all(jnp.isfinite(norms))
    assert jnp.any(norms[-100:] > 0)


def test_sites_with_a_constant_input_are_exact():
    def step(params, h, x):
        h = jnp.tanh(jnp.sum(x) + jnp.roll(h, 1) * 0.9 + params["bias"])
        return h, h

    cell = SMALL_CELLS["vanilla"]
    biased = cell._replace(init=lambda key: {"bias": jax.random.normal(key, (4,))}, step=step)
    trajectory = run(biased, STEPS)
    cotangents = jax.random.normal(jax.random.key(4), (3, 2, 4))
    rows = [
        influence_rows(e, trajectory, push_all(e, trajectory, jax.random.key(5)), cotangents)
        for e in (estimators.ok(3), estimators.rtrl())
    ]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-12)


def test_ok_refuses_rank_zero():
    with pytest.raises(ValueError, match="rank must be at least 1"):
        estimators.ok(0)
