import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from kfrtrl_jax.base import Cell
from tests.estimators import stacked

CELL = "recurrent_highway"


@pytest.fixture(autouse=True)
def given_signs(monkeypatch):
    stacked.patch_signs(("uoro",), monkeypatch)


def opaque():
    """h' = log(e^w + e^h) - x: w enters in no product or sum that the linearization knows."""

    def step(params, h, x):
        h = jnp.logaddexp(params["w"], h) - x
        return h, h

    return Cell(lambda key: {"w": jax.random.normal(key, (3,))}, lambda: jnp.ones(3), step)


@pytest.mark.parametrize(("cell", "change"), [("gru", lambda steps: steps), (CELL, stacked.dense)])
def test_reverse_kf_rtrl_is_unbiased(cell, change):
    stacked.assert_unbiased(estimators.reverse_kf_rtrl(), change(stacked.along(cell)))


def test_a_parameter_in_no_product_is_taken_too():
    steps = stacked.linearized(opaque(), 5)
    assert steps.structure.problems
    assert stacked.mean_and_teeth(estimators.reverse_kf_rtrl(), steps)[0] < 4


def test_a_steps_noise_is_the_theorys():
    """(g - 1) |a|^2 |D|^2 + 2 g^1/2 |b| |JC| |a| |D| + 2 <b (x) JC, a (x) D>, D diagonal."""
    steps, estimator = stacked.part(stacked.along("gru"), slice(1, 4)), estimators.reverse_kf_rtrl()
    recurrent = [site.label for site in steps.structure.sites].index("candidate_recurrent")
    steps = only(steps, recurrent)
    drawn, expected = stacked.every_draw(estimator, steps, 4)
    np.testing.assert_allclose(drawn.mean(axis=0), expected, atol=1e-12)

    earlier = 1.0 - 2.0 * (37 * np.arange(1, 3)[:, None] % 16 >> np.arange(4) & 1)
    state, _ = stacked.states(estimator, stacked.part(steps, slice(-1)), jnp.asarray(earlier))
    last = jax.tree.map(lambda x: x[-1], steps.linearizations)
    b, a = state.output_factor[0], last.sites[0].inputs[:, 0]
    carried = last.jacobian.times(state.state_factor[0])
    derivative = last.sites[0].derivatives.dense()[:, 0]
    norms = [jnp.sqrt(jnp.sum(x.reshape(2, -1) ** 2, axis=1)) for x in (b, carried, a, derivative)]
    shared = jnp.einsum("bl,bij,bj,bil->b", b, carried, a, derivative)
    g = derivative.shape[2]
    wanted = (g - 1) * (norms[2] * norms[3]) ** 2 + 2 * g**0.5 * np.prod(norms, axis=0) + 2 * shared
    assert jnp.all(norms[1] > 0)
    noise = jnp.sum(jnp.var(drawn, axis=0).reshape(2, -1), axis=1)
    np.testing.assert_allclose(noise, wanted, rtol=1e-10)


def only(steps, site):
    """With one of the sites alone."""
    structure = steps.structure._replace(sites=steps.structure.sites[site : site + 1])
    kept = steps.linearizations._replace(sites=steps.linearizations.sites[site : site + 1])
    return stacked.Steps(structure, kept)


def test_a_step_without_immediate_influence_keeps_the_old_as_it_is():
    steps = stacked.part(stacked.along(CELL), slice(1, 4))
    vanished = stacked.scaled_rows(steps, np.asarray([1.0, 1.0, 0.0])[:, None, None, None])
    drawn, expected = stacked.every_draw(estimators.reverse_kf_rtrl(), vanished, 8)
    assert jnp.all(jnp.any(expected != 0, axis=1))
    np.testing.assert_allclose(drawn, jnp.broadcast_to(expected, drawn.shape), atol=1e-12)


def test_a_lane_that_starts_anew_stays_finite_and_memory_is_small():
    steps, estimator = stacked.along(CELL), estimators.reverse_kf_rtrl()
    state, states = stacked.states(estimator, steps, jnp.ones((8, 64)))
    assert all(jnp.all(jnp.isfinite(x)) and jnp.any(x != 0) for x in jax.tree.leaves(states))
    site, n = steps.structure.sites[0], steps.structure.state_size
    entries = sum(x.size for x in jax.tree.leaves(state))
    assert entries == 2 * (site.output_size + n * site.input_size)
