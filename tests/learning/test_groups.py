"""Gradients summed over groups of lanes first: the same up to rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, credit, estimators
from kfrtrl_jax._src.estimators.registry import ESTIMATORS
from kfrtrl_jax._src.learning.groups import grouped, together
from kfrtrl_jax._src.learning.recovery import axes_of_lanes
from kfrtrl_jax.base import Batch
from kfrtrl_jax.linearization import make_linearizer
from tests.helpers.interpreter import evaluated
from tests.helpers.learners import learner_of
from tests.trajectories import SMALL_CELLS, flat, sequence

LANES = 6
# A GRU couples its units, and the state of `truncated` is 0.
LEFT_OUT = {"diagonal_rtrl", "truncated"}
NEED_ARGUMENTS = {"ok": {"rank": 2}, "ktp": {"rank": 2}, "sketched": {"rank": 2}}
OTHERS = {
    "snap(order=2)": estimators.snap(order=2),
    "shrink": estimators.shrink(estimators.kf_rtrl(), copies=2),
    "reset_every": estimators.reset_every(5, estimators.ok(rank=2)),
}
FORMS = {
    "window": {"segment_length": 2, "update_every": 1, "window": 6},
    "estimated": {"immediate": "estimated"},
    "credit": {"segment_length": 2, "credit": credit.dni(hidden_units=4, share=0.5)},
}


@functools.cache
def structure():
    cell = cells.gru(input_size=3, hidden_size=4)
    return make_linearizer(cell, jnp.zeros(3), LANES).structure


def randomized(state):
    """The state with random numbers in the place of all its floats."""
    rng = np.random.default_rng(0)

    def leaf(x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return jnp.asarray(rng.normal(size=x.shape), x.dtype)

    return jax.tree.map(leaf, state)


@pytest.mark.parametrize("name", [*sorted(set(ESTIMATORS) - LEFT_OUT), *OTHERS])
def test_groups_of_lanes_add_up_to_all_of_them(name):
    estimator = OTHERS.get(name) or ESTIMATORS[name](**NEED_ARGUMENTS.get(name, {}))
    state = randomized(estimator.init(structure()))
    cotangent = randomized(jnp.zeros((LANES, structure().state_size)))
    axes = axes_of_lanes(estimator, structure()), 0
    parts = evaluated(grouped(estimator.pull, axes, 3), state, cotangent)
    assert all(len(part) == 3 for part in parts)
    expected = evaluated(estimator.pull, state, cotangent)
    np.testing.assert_allclose(flat(together(parts)), flat(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_a_learner_follows_the_same_gradient(form):
    lengths = FORMS[form].get("segment_length", 1)
    inputs, targets, reset = sequence(4 * lengths)
    segments = jax.tree.map(
        lambda x: x.reshape(4, lengths, *x.shape[1:]), Batch(inputs, targets, reset)
    )

    def learned(groups):
        learner = learner_of(
            SMALL_CELLS["vanilla"], estimators.kf_rtrl(), lane_groups=groups, **FORMS[form]
        )
        start = evaluated(learner.init, jax.random.key(0))
        state, _ = evaluated(lambda s, b: jax.lax.scan(learner.step, s, b), start, segments)
        return flat(state.parameters), flat(start.parameters)

    (once, before), (apart, _) = learned(1), learned(2)
    assert np.linalg.norm(once - before) > 1e-2
    np.testing.assert_allclose(apart, once, rtol=1e-10)


def test_groups_that_do_not_divide_the_lanes_are_refused():
    with pytest.raises(ValueError, match="lane_groups must divide batch_size, got 3 and 2"):
        learner_of(SMALL_CELLS["vanilla"], estimators.kf_rtrl(), lane_groups=3)
