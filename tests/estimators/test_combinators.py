import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from tests.trajectories import SMALL_CELLS, influence_rows, push_all, run


def rows_of(estimator, trajectory, key=0):
    n = trajectory.linearizer.structure.state_size
    cotangents = jax.random.normal(jax.random.key(9), (3, 2, n))
    state = push_all(estimator, trajectory, jax.random.key(key))
    return influence_rows(estimator, trajectory, state, cotangents)


def test_average_of_exact_copies_is_exact():
    trajectory = run(SMALL_CELLS["gru"], 6)
    np.testing.assert_allclose(
        rows_of(estimators.average(estimators.rtrl(), 3), trajectory),
        rows_of(estimators.rtrl(), trajectory),
        atol=1e-12,
    )


def test_average_divides_the_variance_by_the_number_of_copies():
    trajectory = run(SMALL_CELLS["vanilla"], 6)
    variances = []
    for estimator in (estimators.kf_rtrl(), estimators.average(estimators.kf_rtrl(), 4)):
        draws = jax.vmap(lambda k, e=estimator: rows_of(e, trajectory, k))(jnp.arange(4000))
        variances.append(float(jnp.sum(jnp.var(draws, axis=0))))
    assert variances[0] / variances[1] == pytest.approx(4, rel=0.15)


def test_reset_every_forgets_all_but_the_steps_since():
    trajectory = run(SMALL_CELLS["recurrent_highway"], 10)
    # Ten pushes with period 4 reset at pushes 0, 4 and 8: what is left is the last two steps.
    last_two = trajectory._replace(
        carries=jax.tree.map(lambda c: c[-2:], trajectory.carries),
        inputs=trajectory.inputs[-2:],
        keep=trajectory.keep[-2:].at[0].set(0.0),
    )
    np.testing.assert_allclose(
        rows_of(estimators.reset_every(4, estimators.rtrl()), trajectory),
        rows_of(estimators.rtrl(), last_two),
        atol=1e-12,
    )


@pytest.mark.parametrize("copies", [0, -1])
def test_average_refuses_no_copies(copies):
    with pytest.raises(ValueError, match="copies must be at least 1"):
        estimators.average(estimators.rtrl(), copies)


def test_reset_every_refuses_period_zero():
    with pytest.raises(ValueError, match="period must be at least 1"):
        estimators.reset_every(0, estimators.rtrl())
