import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from kfrtrl_jax._src.matrices import Banded, BlockColumns, Dense, Index, single
from kfrtrl_jax.base import Linearization, Site, SiteJacobian, Structure
from tests.estimators.monte_carlo import deviations
from tests.helpers.nights import at_night
from tests.trajectories import SMALL_CELLS, push_all, run

module = importlib.import_module("kfrtrl_jax._src.estimators.ktp")


@pytest.mark.parametrize(
    ("cell", "rank", "reduction", "segment_length"),
    [
        ("vanilla", 1, "signs", 1),
        ("vanilla", 3, "sampling", 4),
        *at_night(("deep_recurrent_highway", 3, "signs", 1), ("vanilla", 2, "sampling", 1)),
    ],
)
def test_ktp_is_unbiased(cell, rank, reduction, segment_length):
    """With a banded D and with a dense one."""
    estimator = estimators.ktp(rank, reduction)
    z = deviations(estimator, SMALL_CELLS[cell], segment_length=segment_length)
    assert np.max(np.abs(z)) < 4


def test_equal_signs_are_caught(monkeypatch):
    monkeypatch.setattr(module, "random_signs", lambda key, shape, dtype: jnp.ones(shape, dtype))
    with np.errstate(divide="ignore"):  # the draws are then all the same
        assert np.max(np.abs(deviations(estimators.ktp(2), SMALL_CELLS["vanilla"], 64))) > 100


def reduced(derivative, rank, reduction="signs"):
    """What a push makes of D, [B, n, g], for a = 1 and no influence from before."""
    batch, (n, g) = len(derivative.values), derivative.shape
    estimator = estimators.ktp(rank, reduction)
    state = estimator.init(Structure(batch, n, (Site(1, g, "w"),), derivative.values.dtype))
    nothing = BlockColumns((Dense(jnp.zeros((batch, n, n))),))
    site = SiteJacobian(jnp.ones((batch, 1, 1)), single(derivative))
    step = Linearization(nothing, (site,), nothing, jnp.zeros(batch))
    vectors = estimator.push(state, step, jax.random.key(0))
    return jnp.einsum("bmr,bnr,bgr->bng", *(of_sites[0] for of_sites in vectors))


@pytest.mark.parametrize("reduction", ["signs", "sampling"])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_diagonal_derivative_is_reduced_with_the_least_noise(rank, reduction):
    """s^2 / r - sum of sigma^2 for every draw, where every term gets the same share of sigma."""
    sigma = jnp.asarray([[0.5, 1.0, 2.0, 2.0, 1.5, 0.5]])  # columns 0 and 3, 1 and 4, 2 and 5
    diagonal = Banded(sigma[:, None], Index(np.arange(6)[None]), 6)
    noise = jnp.sum((reduced(diagonal, rank, reduction) - diagonal.dense()) ** 2)
    assert noise == pytest.approx(jnp.sum(sigma) ** 2 / rank - jnp.sum(sigma**2))


@pytest.mark.parametrize("reduction", ["signs", "sampling"])
def test_a_derivative_of_full_rank_r_is_kept_exactly(reduction):
    dense = Dense(jax.random.normal(jax.random.key(1), (2, 4, 3)))
    np.testing.assert_allclose(reduced(dense, 3, reduction), dense.values)


@pytest.mark.parametrize(("reduction", "noise"), [("signs", 6.0), ("sampling", 2.0)])
def test_two_products_of_norm_one_become_one_with_this_noise(reduction, noise):
    """u (x) b d^T + a (x) x y^T with factors that are orthogonal."""
    one, other = jnp.eye(2)[:, None, :, None]
    mixed = getattr(module, f"_by_{reduction}")
    keys = jax.random.split(jax.random.key(0), 256)
    found = jax.vmap(
        lambda k: mixed((one,) * 3, (other[..., 0][:, None], *[other[:, None]] * 2), k)
    )(keys)
    products = jnp.einsum("kbmr,kbnr,kbgr->kmng", *found)
    target = jnp.einsum("m,n,g->mng", *[one[0, :, 0]] * 3) + jnp.einsum(
        "m,n,g->mng", *[other[0, :, 0]] * 3
    )
    np.testing.assert_allclose(jnp.sum((products - target) ** 2, axis=(1, 2, 3)), noise)


@pytest.mark.parametrize("reduction", ["signs", "sampling"])
def test_saturated_cell_gives_zeros_and_no_nan(reduction):
    trajectory, estimator = run(SMALL_CELLS["vanilla"], 8), estimators.ktp(2, reduction)
    saturated = trajectory._replace(params=jax.tree.map(lambda w: 1e6 * w, trajectory.params))
    state = push_all(estimator, saturated, jax.random.key(1))
    products = jnp.einsum("bmr,bnr,bgr->bmng", *(factors[0] for factors in state))
    assert jnp.all(products == 0)
    state = push_all(estimator, trajectory, jax.random.key(2))
    assert all(jnp.all(jnp.isfinite(x)) and jnp.any(x != 0) for x in jax.tree.leaves(state))


def test_ktp_refuses_rank_zero():
    with pytest.raises(ValueError, match="rank must be at least 1"):
        estimators.ktp(0)


def test_ktp_refuses_an_unknown_reduction():
    with pytest.raises(ValueError, match="reduction must be one of signs, sampling, got 'x'"):
        estimators.ktp(2, "x")
