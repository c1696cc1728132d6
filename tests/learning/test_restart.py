"""Lanes that start anew, whatever was in them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from kfrtrl_jax.base import Batch
from kfrtrl_jax.credit import dni
from tests.helpers.interpreter import evaluated, traced
from tests.helpers.learners import learner_of, segments
from tests.trajectories import SMALL_CELLS, sequence

LANE = jnp.asarray([False, True])


def spoiled(tree, axis):
    """Floats of lane 1 replaced by infinities."""

    def leaf(x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return jnp.asarray(x).at[(slice(None),) * axis + (1,)].set(jnp.inf)

    return jax.tree.map(leaf, tree)


def spoiled_steps(kept):
    steps = kept.steps
    sites = tuple(
        site._replace(inputs=spoiled(site.inputs, 1), derivatives=spoiled(site.derivatives, 2))
        for site in steps.sites
    )
    rest = spoiled(steps.jacobian.rest, 1)
    jacobian = type(steps.jacobian)(rest, steps.jacobian.products)
    return kept._replace(steps=steps._replace(sites=sites, jacobian=jacobian))


SEVERAL = (("segment_length", 2), ("update_every", 1), ("window", 4))


@functools.cache
def learned(cell, arguments):
    """(learner, its `gradient` traced, batches(reset) -> 6 segments, the state after 3 of them)."""
    learner = learner_of(SMALL_CELLS[cell], estimators.rtrl(), **dict(arguments))
    length = dict(arguments).get("segment_length", 1)
    inputs, targets, _ = sequence(6 * length)

    def batches(restarting=()):
        reset = jnp.zeros(targets.shape, bool)
        for lane in restarting:
            reset = reset.at[3 * length, lane].set(True)
        stacked = segments(Batch(inputs, targets, reset), length)
        return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(6)]

    state = learner.init(jax.random.key(0))
    gradient = traced(learner.gradient, state, batches()[0])
    for segment in batches()[:3]:
        _, state, _ = gradient(state, segment)
    return learner, gradient, batches, state


@pytest.mark.parametrize(
    ("cell", "arguments"),
    [
        ("vanilla", SEVERAL),
        ("vanilla", ()),
        ("lstm", (("immediate", "estimated"),)),
        ("vanilla", (("segment_length", 2), ("credit", dni()))),
    ],
)
def test_later_gradients_are_those_of_a_lane_that_really_starts(cell, arguments):
    """They equal those of a learner whose batch restarts the lane, though all in it was infinite."""
    learner, gradient, batches, other = learned(cell, arguments)
    lost = other._replace(
        carry=spoiled(other.carry, 0),
        influence=spoiled(other.influence, 0),
        kept=spoiled_steps(other.kept) if other.kept else (),
    )
    assert not evaluated(learner.lost, other).any()
    assert list(evaluated(learner.lost, lost)) == [False, True]
    state = evaluated(learner.restart, lost, LANE)
    assert not evaluated(learner.lost, state).any()
    for segment, same in zip(batches()[3:], batches([1])[3:]):
        got, state, _ = gradient(state, segment)
        want, other, _ = gradient(other, same)
        chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)
        # A credit, common to all lanes, also learns from the carry before a reset.
        other = other._replace(credit=state.credit)
    chex.assert_trees_all_close(state.carry, other.carry, rtol=1e-12)


def test_the_other_lanes_and_what_is_shared_stay_as_they_are():
    learner, _, _, state = learned("vanilla", SEVERAL)
    new = evaluated(learner.restart, state, LANE)
    for field in ("parameters", "optimizer_state", "key"):
        chex.assert_trees_all_equal(getattr(new, field), getattr(state, field))

    def of_lane(state, lane):
        steps = state.kept.steps
        rest = (state.carry, state.influence, state.fresh)
        along = [(1, steps.jacobian.rest), (1, steps.keep), (1, [s.inputs for s in steps.sites])]
        along += [(2, [s.derivatives for s in steps.sites]), (0, rest)]
        return [np.take(np.asarray(x), lane, axis) for axis, t in along for x in jax.tree.leaves(t)]

    chex.assert_trees_all_equal(of_lane(new, 0), of_lane(state, 0))
    assert list(new.fresh) == [False, True]
    first = learner.init(jax.random.key(0))
    chex.assert_trees_all_equal(of_lane(new, 1), of_lane(first, 1))


def test_what_a_cell_keeps_across_sequences_is_kept_only_where_it_is_finite():
    inner = SMALL_CELLS["vanilla"]

    def step(params, carry, x):
        h, output = inner.step(params, carry[0], x)
        return (h, jax.lax.stop_gradient(0.9 * carry[1] + 0.1 * jnp.sum(x))), output

    cell = inner._replace(
        initial_carry=lambda: (inner.initial_carry(), jnp.asarray(3.0)),
        step=step,
        restart=lambda carry: (inner.initial_carry(), carry[1]),
    )
    learner = learner_of(cell, estimators.truncated())
    state = learner.init(jax.random.key(0))
    for kept, expected in ((7.0, 7.0), (jnp.nan, 3.0)):
        h = jnp.full_like(state.carry[0], jnp.inf)
        found = evaluated(
            learner.restart, state._replace(carry=(h, jnp.full(2, kept))), jnp.asarray([True, True])
        )
        np.testing.assert_array_equal(found.carry[0], 0)
        np.testing.assert_array_equal(found.carry[1], expected)
