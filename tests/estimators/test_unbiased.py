"""The Monte-Carlo mean of each unbiased estimator is the exact influence matrix."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from tests.trajectories import BATCH_SIZE, SMALL_CELLS, influence_rows, push_all, run

STEPS, DRAWS, CHUNK, PROJECTIONS = 12, 20_480, 1_024, 6
UNBIASED = {
    "uoro": estimators.uoro(),
    "kf_rtrl": estimators.kf_rtrl(),
    "average": estimators.average(estimators.kf_rtrl(), 2),
}


def deviations(estimator, cell):
    """Of a few random projections of the mean of G~ from those of G, in standard errors."""
    trajectory = run(cell, STEPS)
    n = trajectory.linearizer.structure.state_size
    cotangents = jax.random.normal(jax.random.key(11), (PROJECTIONS, BATCH_SIZE, n))
    exact_state = push_all(estimators.rtrl(), trajectory, jax.random.key(0))
    exact = influence_rows(estimators.rtrl(), trajectory, exact_state, cotangents)
    directions = jax.random.normal(jax.random.key(12), exact.shape)

    @jax.jit
    def chunk(keys):
        def draw(key):
            state = push_all(estimator, trajectory, key)
            rows = influence_rows(estimator, trajectory, state, cotangents)
            return jnp.sum(rows * directions, axis=1)

        return jax.vmap(draw)(keys)

    keys = jax.random.split(jax.random.key(13), DRAWS).reshape(-1, CHUNK)
    draws = np.concatenate([chunk(k) for k in keys])
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    return (draws.mean(axis=0) - jnp.sum(exact * directions, axis=1)) / error


@pytest.mark.parametrize("cell", SMALL_CELLS)
@pytest.mark.parametrize("name", ["uoro", "kf_rtrl"])
def test_mean_over_draws_is_the_exact_influence(name, cell):
    assert np.max(np.abs(deviations(UNBIASED[name], SMALL_CELLS[cell]))) < 4


def test_average_of_copies_is_unbiased():
    z = deviations(UNBIASED["average"], SMALL_CELLS["recurrent_highway"])
    assert np.max(np.abs(z)) < 4


@pytest.mark.parametrize("name", ["uoro", "kf_rtrl"])
def test_equal_signs_are_caught(name, monkeypatch):
    """The tests above have teeth: with equal signs they see the bias."""
    monkeypatch.setattr(
        importlib.import_module(f"kfrtrl_jax.estimators.{name}"),
        "random_signs",
        lambda key, shape, dtype: jnp.ones(shape, dtype),
    )
    with np.errstate(divide="ignore"):  # the draws are then all the same
        z = deviations(UNBIASED[name], SMALL_CELLS["vanilla"])
    assert np.max(np.abs(z)) > 100
