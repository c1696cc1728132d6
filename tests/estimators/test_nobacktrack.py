import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from tests.estimators import stacked

CELL = "recurrent_highway"


@pytest.fixture(autouse=True)
def given_signs(monkeypatch):
    stacked.patch_signs(("uoro", "nobacktrack"), monkeypatch)


@pytest.mark.parametrize(("cell", "change"), [("gru", lambda steps: steps), (CELL, stacked.dense)])
def test_nobacktrack_is_unbiased(cell, change):
    stacked.assert_unbiased(estimators.nobacktrack(), change(stacked.along(cell)))


def test_a_steps_own_noise_is_the_theorys_and_below_that_of_uoro():
    """(sum |I_i|)^2 - |I|^2, with units whose rows of I differ much."""
    first = stacked.part(stacked.along(CELL), slice(1))
    first = stacked.scaled_rows(first, np.asarray([1.0, 0.1, 3.0, 0.3]))
    rows = jnp.linalg.norm(stacked.exact(first).reshape(2, 4, -1), axis=-1)
    wanted = jnp.sum(jnp.sum(rows, axis=1) ** 2 - jnp.sum(rows**2, axis=1))
    noises = []
    for estimator in (estimators.nobacktrack(), estimators.uoro()):
        drawn, expected = stacked.every_draw(estimator, first, 4)
        np.testing.assert_allclose(drawn.mean(axis=0), expected, atol=1e-12)
        noises.append(float(jnp.sum(jnp.var(drawn, axis=0))))
    np.testing.assert_allclose(noises[0], wanted, rtol=1e-10)
    assert noises[0] < 0.8 * noises[1]


def test_a_unit_without_immediate_influence_gets_no_noise():
    first = stacked.part(stacked.along(CELL), slice(1))
    first = stacked.scaled_rows(first, np.asarray([1.0, 0.0, 1.0, 0.0]))
    drawn, expected = stacked.every_draw(estimators.nobacktrack(), first, 4)
    np.testing.assert_allclose(drawn.mean(axis=0), expected, atol=1e-12)
    assert jnp.all(drawn.reshape(16, 2, 4, -1)[:, :, 1::2] == 0)


def test_a_step_without_immediate_influence_keeps_the_old_as_it_is():
    steps = stacked.part(stacked.along(CELL), slice(1, 4))
    vanished = stacked.scaled_rows(steps, np.asarray([1.0, 1.0, 0.0])[:, None, None, None])
    drawn, expected = stacked.every_draw(estimators.nobacktrack(), vanished, 4)
    assert jnp.all(jnp.any(expected != 0, axis=1))
    np.testing.assert_allclose(drawn, jnp.broadcast_to(expected, drawn.shape), atol=1e-12)


def test_a_lane_that_starts_anew_stays_finite():
    steps = stacked.along(CELL)
    _, states = stacked.states(estimators.nobacktrack(), steps, jnp.ones((8, 64)))
    assert all(jnp.all(jnp.isfinite(x)) and jnp.any(x != 0) for x in jax.tree.leaves(states))
