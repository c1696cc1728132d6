"""Learners with the true credit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax._src.base import Batch
from kfrtrl_jax._src.lanes import restarted
from kfrtrl_jax.base import CreditEstimator
from kfrtrl_jax.learning import make_learner, predict
from tests.helpers.interpreter import evaluated
from tests.trajectories import (
    BATCH_SIZE,
    HIDDEN_SIZE,
    INPUT_SIZE,
    READOUT,
    SMALL_CELLS,
    flat,
    sequence,
)

STEPS = 12


def mixed_cell():
    """A carry of two floats, a counter and a PRNG key."""
    vanilla = SMALL_CELLS["vanilla"]

    def step(params, carry, x):
        key, draw = jax.random.split(carry["key"])
        h, _ = vanilla.step(params, carry["h"] + 0.1 * jax.random.normal(draw), x)
        trace = 0.5 * carry["trace"] + h[:2] * (1 + carry["count"] % 2)
        output = h + jnp.concatenate([trace, trace])
        return {"count": carry["count"] + 1, "h": h, "key": key, "trace": trace}, output

    carry = {
        "count": jnp.zeros((), int),
        "h": jnp.zeros(HIDDEN_SIZE),
        "key": jax.random.key(5),
        "trace": jnp.zeros(2),
    }
    return cells.from_function(step, vanilla.init, carry)


CELLS = {"vanilla": SMALL_CELLS["vanilla"], "mixed": mixed_cell()}


def moved(carry, delta):
    """The carry with delta [B, n] added to its floats."""
    leaves, treedef = jax.tree.flatten(carry)
    place = 0
    for i, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            size = leaf[0].size
            leaves[i] = leaf + delta[:, place : place + size].reshape(leaf.shape)
            place += size
    return jax.tree.unflatten(treedef, leaves)


def loss_of_stream(cell, parameters, carry, segments, deltas):
    """The sum of all losses, with deltas [segments, B, n] added at the start of each.

    A loss counts by its weight over the mean weight of its segment.
    """

    def step(carry, batch):
        start = restarted(cell, carry, batch.reset)
        carry, logits = jax.vmap(lambda c, x: predict(cell, READOUT, parameters, c, x))(
            start, batch.inputs
        )
        return carry, optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)

    def one(carry, xs):
        delta, segment = xs
        carry, losses = jax.lax.scan(step, moved(carry, delta), segment)
        if segment.weight is not None:
            mean = jnp.mean(segment.weight)
            losses = losses * segment.weight / jnp.where(mean == 0, 1, mean)
        return carry, losses

    return jnp.sum(jax.lax.scan(one, carry, (deltas, segments))[1])


def oracle(share):
    """A credit whose state is the true one at the start of every segment, and the targets so far.

    Both are [segments + 1, B, n].
    """

    def update(state, carry, target):
        table, targets, count = state
        return table, targets.at[count].set(target), count + 1

    return CreditEstimator(
        init=lambda structure, key: (),
        predict=lambda state, carry: state[0][state[2] + 1],
        update=update,
        share=share,
    )


def learner_of(cell, estimator, share, **kwargs):
    return make_learner(
        cell,
        READOUT,
        estimator,
        optax.sgd(0.1),
        batch_size=BATCH_SIZE,
        example_input=jnp.zeros(INPUT_SIZE),
        credit=oracle(share),
        **kwargs,
    )


def unequal_weights():
    """Of another sum in each segment of 3 steps, and nothing in the third."""
    weight = np.random.default_rng(2).exponential(size=(STEPS, BATCH_SIZE))
    weight[1] = weight[6:9] = 0
    return jnp.asarray(weight)


@pytest.mark.parametrize(
    ("cell", "length", "weight"),
    [("vanilla", 1, None), ("mixed", 3, None), ("vanilla", 3, unequal_weights)],
    ids=["vanilla", "mixed", "weights"],
)
def test_an_exact_credit_completes_the_gradient(cell, length, weight):
    """At any share, with exact RTRL for the rest, all segments add up to BPTT over the stream."""
    cell, batches = CELLS[cell], Batch(*sequence(STEPS), None if weight is None else weight())
    segments = jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), batches)

    def total(learner, table):
        def one(state, segment):
            gradient, state, _ = learner.gradient(state, segment)
            return state, gradient

        state = learner.init(jax.random.key(0))
        state = state._replace(credit=(table, jnp.zeros_like(table), 0))
        state, gradients = jax.lax.scan(one, state, segments)
        gradient = jax.tree.map(lambda g: jnp.sum(g, axis=0), gradients)
        return flat(gradient) * length * BATCH_SIZE, state.credit[1]

    def everything():
        learner = learner_of(cell, estimators.truncated(), 1.0, segment_length=length)
        start = learner.init(jax.random.key(0))
        n = learner.linearizer.structure.state_size
        exact, table = jax.grad(
            lambda p, d: loss_of_stream(cell, p, start.carry, segments, d), argnums=(0, 1)
        )(start.parameters, jnp.zeros((STEPS // length, BATCH_SIZE, n)))
        table = jnp.concatenate([table, jnp.zeros_like(table[:1])])
        wrong = jax.random.normal(jax.random.key(1), table.shape)
        alone = jax.vmap(lambda t: total(learner, t))(jnp.stack([table, wrong]))

        def shared(table, share):
            rtrl = learner_of(cell, estimators.rtrl(), share, segment_length=length)
            return total(rtrl, table)

        together = jax.vmap(shared)(jnp.stack([table, table, wrong]), jnp.asarray([0.5, 0.3, 0.0]))
        return flat(exact), table, alone, together

    exact, table, alone, together = evaluated(everything)
    assert np.linalg.norm(exact) > 0.1
    np.testing.assert_allclose(alone[0][0], exact, atol=1e-10)
    assert np.linalg.norm(alone[0][1] - exact) > 0.1  # with a wrong credit
    for gradient in together[0]:
        np.testing.assert_allclose(gradient, exact, atol=1e-10)
    for targets in (alone[1][0], together[1][0], together[1][1]):
        np.testing.assert_allclose(targets, table, atol=1e-12)
    # A lane that starts anew does not depend on the state before; the other one does.
    middle = STEPS // 2 // length
    assert batches.reset[STEPS // 2, 1]
    assert not np.any(table[middle, 1])
    assert np.all(table[middle, 0] != 0)


@pytest.mark.parametrize(
    ("share", "immediate", "message"),
    [
        (1.5, "exact", r"the share of a credit must be in \[0, 1\], got 1\.5"),
        (-0.1, "exact", r"the share of a credit must be in \[0, 1\], got -0\.1"),
        (0.5, "estimated", 'immediate="exact"'),
    ],
)
def test_bad_arguments_are_refused(share, immediate, message):
    with pytest.raises(ValueError, match=message):
        learner_of(SMALL_CELLS["vanilla"], estimators.rtrl(), share, immediate=immediate)
