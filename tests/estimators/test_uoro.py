import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from tests.estimators import stacked

CELL = "recurrent_highway"


@pytest.fixture(autouse=True)
def given_signs(monkeypatch):
    stacked.patch_signs(("uoro",), monkeypatch)


@pytest.mark.parametrize(("cell", "change"), [("gru", lambda steps: steps), (CELL, stacked.dense)])
def test_signs_of_pre_activations_are_unbiased(cell, change):
    """With three sites and with one, with a banded D and with a dense one."""
    stacked.assert_unbiased(estimators.uoro("pre_activation"), change(stacked.along(cell)))


@pytest.mark.parametrize(("noise", "signs"), [("state", 4), ("pre_activation", 8)])
def test_a_steps_own_noise_is_the_theorys(noise, signs):
    """(k - 1) |a|^2 |D|^2 for k signs, at the only site."""
    first = stacked.part(stacked.along(CELL), slice(1))
    drawn, expected = stacked.every_draw(estimators.uoro(noise), first, signs)
    np.testing.assert_allclose(drawn.mean(axis=0), expected, atol=1e-12)
    site = first.linearizations.sites[0]
    squares = (
        jnp.sum(site.inputs[..., 0, :] ** 2, axis=-1)
        * site.derivatives.groups[0].squared_norm()[..., 0, :]
    )
    noise = jnp.sum(jnp.var(drawn, axis=0))
    np.testing.assert_allclose(noise, (signs - 1) * jnp.sum(squares), rtol=1e-10)


@pytest.mark.parametrize(("noise", "signs"), [("state", 4), ("pre_activation", 8)])
def test_a_step_without_immediate_influence_keeps_the_old_as_it_is(noise, signs):
    """The limit where D = 0, with memory in both lanes."""
    steps = stacked.part(stacked.along(CELL), slice(1, 4))
    vanished = stacked.scaled_rows(steps, np.asarray([1.0, 1.0, 0.0])[:, None, None, None])
    drawn, expected = stacked.every_draw(estimators.uoro(noise), vanished, signs)
    assert jnp.all(jnp.any(expected != 0, axis=1))
    np.testing.assert_allclose(drawn, jnp.broadcast_to(expected, drawn.shape), atol=1e-12)


def test_a_lane_that_starts_anew_forgets_and_stays_finite():
    steps, estimator = stacked.along(CELL), estimators.uoro("pre_activation")
    keys = jnp.ones((8, 64))
    _, states = stacked.states(estimator, steps, keys)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(states))
    alone, _ = stacked.states(estimator, stacked.part(steps, slice(4, 5)), keys[4:5])
    for whole, fresh in zip(jax.tree.leaves(states), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(whole[4, 1], fresh[1], atol=1e-12)


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="noise must be one of state, pre_activation, got 'x'"):
        estimators.uoro("x")
