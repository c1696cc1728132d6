"""Estimators whose state is kept in fewer bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax._src.estimators import stored as module
from kfrtrl_jax.estimators import kf_rtrl, rtrl, shrink, stored
from tests.estimators.monte_carlo import deviations, reference
from tests.trajectories import SMALL_CELLS

VANILLA = SMALL_CELLS["vanilla"]


@pytest.mark.parametrize("estimator", [rtrl(), kf_rtrl()])
def test_rounding_at_random_leaves_the_mean(estimator):
    assert np.max(np.abs(deviations(stored(estimator), VANILLA, draws=2048, steps=6))) < 4


def test_rounding_to_the_nearest_is_caught(monkeypatch):
    rounded = module._rounded
    monkeypatch.setattr(module, "_rounded", lambda x, dtype, key=None: rounded(x, dtype))
    assert np.max(np.abs(deviations(stored(rtrl()), VANILLA, draws=256, steps=6))) > 100


def test_a_number_becomes_one_of_its_neighbours_and_a_kept_one_itself():
    x = jnp.asarray([1.0, 1 + 2**-9, -3.01, 1e-3, 0.0, jnp.inf, jnp.nan])
    keys = jax.random.split(jax.random.key(0), 4096)
    drawn = np.asarray(jax.vmap(lambda key: module._rounded(x, jnp.bfloat16, key))(keys), float)
    np.testing.assert_array_equal(drawn[:, [0, 4, 5]], np.broadcast_to([1, 0, np.inf], (4096, 3)))
    assert np.isnan(drawn[:, 6]).all()
    assert [len(np.unique(column)) for column in drawn[:, 1:4].T] == [2, 2, 2]
    errors = drawn[:, 1:4].std(axis=0) / 64
    assert np.all(np.abs(drawn[:, 1:4].mean(axis=0) - x[1:4]) < 4 * errors)


def test_its_state_takes_a_quarter_of_one_in_float64_and_stays_as_it_is():
    trajectory = reference(VANILLA, 6).trajectory
    own, inner = stored(kf_rtrl()), kf_rtrl()
    states = [jax.eval_shape(lambda e=e: e.init(trajectory.structure)) for e in (own, inner)]
    sizes = [sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) for state in states]
    assert sizes[0] == sizes[1] / 4
    first = jax.tree.map(lambda x: x[0], trajectory.linearizations)
    pushed = jax.eval_shape(own.push, states[0], first, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), pushed) == jax.tree.map(
        lambda x: (x.shape, x.dtype), states[0]
    )


def test_running_means_that_all_lanes_share_are_not_lowered():
    """To the nearest of 8 bits, a mean of many observations would stand still on its way."""
    trajectory = reference(VANILLA, 6).trajectory
    first = jax.tree.map(lambda x: x[0], trajectory.linearizations)
    own = stored(shrink(kf_rtrl()))
    structure = trajectory.structure
    state = own.push(own.init(structure), first, jax.random.key(0))
    shared = [x.dtype for x in jax.tree.leaves(state) if x.dtype != jnp.bfloat16]
    assert shared == [jnp.float64, jnp.float64]
    cotangents = jax.random.normal(
        jax.random.key(1), (1, structure.batch_size, structure.state_size)
    )
    observed = own.observe(state, cotangents)
    assert [x.dtype for x in jax.tree.leaves(observed)] == [x.dtype for x in jax.tree.leaves(state)]


def test_another_precision_is_refused():
    with pytest.raises(ValueError, match="in bfloat16 or float32, got 'float16'"):
        stored(kf_rtrl(), "float16")
