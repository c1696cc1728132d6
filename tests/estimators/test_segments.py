"""Estimators that are pushed once in several steps, in one of which a lane starts anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells
from kfrtrl_jax._src.estimators import common, reduction
from kfrtrl_jax.estimators import ESTIMATORS, UNBIASED, antithetic, control_variate, kf_rtrl
from tests.estimators.monte_carlo import deviations
from tests.helpers.nights import NIGHT
from tests.trajectories import INPUT_SIZE, SMALL_CELLS

# Lane 1 starts anew before step 4: in the middle of the second segment of 3.
STEPS, LENGTH = 9, 3
ARGUMENTS = {"ok": {"rank": 2}, "ktp": {"rank": 2}}
LRU = cells.lru(input_size=INPUT_SIZE, hidden_size=4)
CASES = {
    **{
        f"{name} on lstm": (ESTIMATORS[name](**ARGUMENTS.get(name, {})), SMALL_CELLS["lstm"])
        for name in sorted(UNBIASED & set(ESTIMATORS) - {"diagonal_rtrl"})
    },
    "diagonal_rtrl on lru": (ESTIMATORS["diagonal_rtrl"](), LRU),
    "antithetic on gru": (antithetic(kf_rtrl()), SMALL_CELLS["gru"]),
    "control_variate on lstm": (control_variate(kf_rtrl()), SMALL_CELLS["lstm"]),
    "kf_rtrl on deep_recurrent_highway": (kf_rtrl(), SMALL_CELLS["deep_recurrent_highway"]),
    "pre-activation noise on gru": (ESTIMATORS["uoro"]("pre_activation"), SMALL_CELLS["gru"]),
}


# Most are not pushed otherwise in segments than the others are; at night they take their turn.
AT_NIGHT = {
    "antithetic on gru",
    "control_variate on lstm",
    "forward_gradient on lstm",
    "kf_rtrl on deep_recurrent_highway",
    "ktp on lstm",
    "nobacktrack on lstm",
    "pre-activation noise on gru",
}


@pytest.mark.parametrize("case", CASES if NIGHT else [c for c in CASES if c not in AT_NIGHT])
def test_the_mean_over_draws_is_exact(case):
    estimator, cell = CASES[case]
    z = deviations(estimator, cell, draws=2048, steps=STEPS, segment_length=LENGTH)
    assert np.max(np.abs(z)) < 4


def test_equal_signs_are_caught(monkeypatch):
    monkeypatch.setattr(common, "random_signs", lambda key, shape, dtype: jnp.ones(shape, dtype))
    z = deviations(kf_rtrl(), SMALL_CELLS["lstm"], draws=256, steps=STEPS, segment_length=LENGTH)
    assert np.max(np.abs(z)) > 100


def pairs(count, seed, m=12, n=20):
    rng = np.random.default_rng(seed)
    # Of very different sizes, so that some are kept and some mixed.
    sizes = np.geomspace(1, 30, count)[:, None]
    return jnp.asarray(sizes * rng.normal(size=(count, m))), jnp.asarray(
        rng.normal(size=(count, n))
    )


def expected_noise(sigma, rank):
    """s^2 / q - sum of sigma^2 over those that are not kept, as few kept as can be."""
    sigma = np.sort(sigma)[::-1]
    for kept in range(rank):
        rest, q = sigma[kept:], rank - kept
        if q * rest[0] <= rest.sum() * (1 + 1e-12):
            return rest.sum() ** 2 / q - (rest**2).sum()
    raise AssertionError


@pytest.mark.parametrize(("rank", "terms"), [(4, 8), (1, 3), (6, 2)])
def test_a_reduction_by_sampling_is_unbiased_and_errs_as_little_as_its_formula(rank, terms):
    v, b = pairs(rank + terms, seed=rank)
    gram_v, gram_b, exact = v @ v.T, b @ b.T, v.T @ b

    @jax.jit
    def draw(uniform):
        x, y = reduction.by_sampling(gram_v, gram_b, uniform, rank)
        assert x.shape == y.shape == (rank, rank + terms)
        return (x @ v).T @ (y @ b)

    # One random number: a fine grid of it is the whole distribution.
    grid = (np.arange(20_000) + 0.5) / 20_000
    drawn = jax.lax.map(draw, jnp.asarray(grid), batch_size=1000)
    size = np.sum(np.asarray(exact) ** 2)
    assert np.sum((np.mean(drawn, axis=0) - exact) ** 2) < 1e-6 * size
    noise = np.mean(np.sum((np.asarray(drawn) - exact) ** 2, axis=(1, 2)))
    sigma = np.linalg.svd(exact, compute_uv=False)[: rank + terms]
    np.testing.assert_allclose(noise, expected_noise(sigma, rank), rtol=2e-3)


def test_a_reduction_of_few_products_is_exact():
    """Of a sum of no more products than there is room for; of nothing at all too."""
    v, b = pairs(5, seed=0)
    v = v.at[3:].set(0)
    for vectors in (v, 0 * v):
        x, y = reduction.by_sampling(vectors @ vectors.T, b @ b.T, jnp.asarray(0.3), 3)
        np.testing.assert_allclose((x @ vectors).T @ (y @ b), vectors.T @ b, atol=1e-10)
