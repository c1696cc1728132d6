import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from tests.estimators.monte_carlo import deviations
from tests.helpers.nights import at_night
from tests.trajectories import SMALL_CELLS, influence_rows, push_all, run

STEPS = 8


@pytest.mark.parametrize(("cell", "directions"), [("vanilla", 1), *at_night(("gru", 3))])
def test_forward_gradient_is_unbiased(cell, directions):
    """Lane 1 starts anew in the middle, with a new direction."""
    estimator = estimators.forward_gradient(directions)
    assert np.max(np.abs(deviations(estimator, SMALL_CELLS[cell]))) < 4


def test_new_directions_at_every_step_are_biased():
    """The test above has teeth."""
    estimator = estimators.forward_gradient()

    def push(state, linearization, key):
        """What is left of the last direction is its tangent alone."""
        redrawn = estimator.push(estimator.init(structure), linearization, key)
        carried = linearization.jacobian.times(state.tangents)
        return redrawn._replace(tangents=redrawn.tangents + carried)

    structure = run(SMALL_CELLS["vanilla"], 1).linearizer.structure
    z = deviations(estimator._replace(push=push), SMALL_CELLS["vanilla"])
    assert np.max(np.abs(z)) > 6


def test_tangents_are_the_influence_along_their_directions():
    trajectory, estimator = run(SMALL_CELLS["lstm"], STEPS), estimators.forward_gradient(2)
    state = push_all(estimator, trajectory, jax.random.key(1))
    exact = push_all(estimators.rtrl(), trajectory, jax.random.key(1))
    tangents = sum(
        jnp.einsum("bnmg,bkmg->bnk", g, v)
        for g, v in zip(exact.influence, state.directions, strict=True)
    )
    np.testing.assert_allclose(state.tangents, tangents, atol=1e-12)


def test_many_directions_come_close():
    trajectory = run(SMALL_CELLS["vanilla"], STEPS)
    cotangents = jax.random.normal(jax.random.key(9), (2, 2, 4))
    rows = [
        influence_rows(e, trajectory, push_all(e, trajectory, jax.random.key(2)), cotangents)
        for e in (estimators.forward_gradient(20_000), estimators.rtrl())
    ]
    assert jnp.linalg.norm(rows[0] - rows[1]) < 0.1 * jnp.linalg.norm(rows[1])


def test_forward_gradient_refuses_no_directions():
    with pytest.raises(ValueError, match="directions must be at least 1"):
        estimators.forward_gradient(0)
