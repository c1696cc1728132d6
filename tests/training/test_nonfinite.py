"""Runs with numbers that are not finite: named, or dropped with the lanes that they are in."""

from __future__ import annotations

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfrtrl_jax.base import Batch, Cell, InfluenceEstimator, Loss, Task
from kfrtrl_jax.cells import vanilla
from kfrtrl_jax.estimators import kf_rtrl
from kfrtrl_jax.training import display, metrics, program, train
from tests.training.small import records, small, unsaved_pictures

NEVER = 10**6
LANES = 3


def fragile(*, input_size: int, hidden_size: int) -> Cell:
    """A vanilla cell that passes the square of its last input on to the next time step."""
    inner = vanilla(input_size=input_size - 1, hidden_size=hidden_size)

    def step(params, carry, x):
        h, _ = inner.step(params, carry["h"], x[:-1])
        h = h + 0 * carry["square"]
        return {"h": h, "square": jnp.square(x[-1])}, h

    start = {"h": inner.initial_carry(), "square": jnp.zeros(())}
    return inner._replace(initial_carry=lambda: start, step=step)


def with_scale() -> InfluenceEstimator:
    """kf_rtrl times a number that all lanes share."""
    inner = kf_rtrl()

    def push(state, linearization, key):
        return (inner.push(state[0], linearization, key), state[1])

    def pull(state, cotangent):
        return tuple(state[1] * g for g in inner.pull(state[0], cotangent))

    def init(structure):
        return (inner.init(structure), jnp.ones(()))

    return InfluenceEstimator(init, push, pull)


def breaking() -> optax.GradientTransformation:
    """Gradient descent, whose update is infinite when its state counts down to 0."""

    def update(gradient, left, params=None):
        rate = jnp.where(left == 1, jnp.inf, -0.1)
        return jax.tree.map(lambda g: rate * g, gradient), left - 1

    return optax.GradientTransformation(lambda params: jnp.asarray(NEVER), update)


def broken(*, batch_size: int) -> Task:
    """Noise; at the time steps in its state the last lane's input, its loss, ... become too large."""

    def init(key):
        never = jnp.asarray(NEVER)
        when = dict.fromkeys(("overflow", "infinite", "absurd", "steep"), never)
        return {**when, "t": jnp.zeros((), int)}

    def sample(state, key):
        t = state["t"] + 1
        noise, classes = jax.random.normal(key, (batch_size, 3)), jax.random.split(key)[0]
        huge = jnp.where(t == state["overflow"], 1e200, 0)
        inputs = noise.at[:, -1].set(0).at[-1, -1].set(huge)
        more = jnp.where(t == state["infinite"], jnp.inf, jnp.where(t == state["absurd"], 1e30, 0))
        targets = (
            jax.random.randint(classes, (batch_size,), 0, 4),
            jnp.full(batch_size, more),
            jnp.full(batch_size, t == state["steep"]),
        )
        return {**state, "t": t}, Batch(inputs, targets, jnp.zeros(batch_size, bool))

    def loss(prediction, target):
        label, more, steep = target
        # The root has no finite derivative at 0.
        root = jnp.sqrt(jnp.where(steep, 0, 1) + 0 * prediction[0])
        return optax.softmax_cross_entropy_with_integer_labels(prediction, label) + more + root - 1

    return Task(
        batch_size=batch_size,
        example_input=jnp.zeros(3),
        input_size=3,
        output_size=4,
        loss=Loss(loss),
        chance_loss=1.4,
        init=init,
        sample=sample,
    )


HERE = {
    "cell": {"name": f"{__name__}:fragile", "hidden_size": 4},
    "estimator": {"name": f"{__name__}:with_scale"},
    "task": {"name": f"{__name__}:broken", "batch_size": LANES},
    "optimizer": {"name": f"{__name__}:breaking"},
}


def config(**changes):
    flat = {f"{part}.{name}": v for part, values in HERE.items() for name, v in values.items()}
    return small(
        {"optimizer.learning_rate": None, **flat, "log_every": 4, "num_steps": 60, **changes}
    )


@functools.cache
def compiled(mode, **changes):
    """(the state at the start, a compiled chunk): of 4 time steps, or of 1 if segments are skipped."""
    lengths = {"log_every": 1 if mode == "skip" else 4}
    built = program.build(config(on_nonfinite=mode, **{**lengths, **changes}))
    return jax.jit(built.init)(0), jax.jit(built.run_chunk)


def breaking_at(state, updates=NEVER, **steps):
    """The state with time steps at which its task breaks, or the update at which the optimizer does."""
    task = {**state.task, **{name: jnp.asarray(step, int) for name, step in steps.items()}}
    learner = state.learner._replace(optimizer_state=jnp.asarray(updates, int))
    return state._replace(task=task, learner=learner)


def ran(state, chunk, count=1):
    for _ in range(count):
        state, results = chunk(state)
    return state, results


def of_lane(learner, lane):
    return jax.tree.map(lambda x: x[lane], (learner.carry, learner.influence[0], learner.fresh))


def without_keys(state):
    def leaf(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.tree.map(leaf, state)


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        ({"updates": 6}, r"^learner\.parameters\.cell\.weights is no longer finite at step 6;"),
        ({"updates": 8}, r"^learner\.parameters\.cell\.weights is no longer finite at step 8;"),
        ({"overflow": 7}, r"^learner\.carry\.square is no longer finite at step 7;"),
        ({"overflow": 8}, r"^learner\.carry\.square is no longer finite at step 8;"),
        ({"infinite": 7}, r"^the loss is no longer finite at step 7;"),
        ({"steep": 7}, r"^the gradient is no longer finite at step 7;"),
        (
            {"absurd": 7},
            r"^the running loss has reached 1e\+27, more than a million .*, at step 8;",
        ),
    ],
)
def test_a_run_stops_and_names_the_first_step_and_the_array(breaks, message):
    state, chunk = compiled("stop")
    state, results = ran(breaking_at(state, **breaks), chunk, 2)
    with pytest.raises(metrics.NonFiniteError, match=message) as raised:
        metrics.check_finite(results, state)
    assert "\n" not in str(raised.value)


def test_a_finite_run_is_the_same_whatever_is_done_about_others():
    (state, chunk), (start, skipping) = compiled("stop"), compiled("skip")
    state, results = ran(breaking_at(state), chunk, 2)
    metrics.check_finite(results, state)
    other, results = ran(breaking_at(start), skipping, 8)
    metrics.check_finite(results, other)
    assert other.skipped == 0
    chex.assert_trees_all_equal(without_keys(state), without_keys(other._replace(skipped=())))


def test_a_segment_is_skipped_and_only_the_lost_lane_starts_anew():
    start, chunk = compiled("skip")
    before, _ = ran(breaking_at(start, overflow=6), chunk, 5)
    bad, results = ran(before, chunk)
    metrics.check_finite(results, bad)
    assert (bad.step, bad.skipped, results.task["skipped"]) == (6, 1, 1)
    record = metrics.make_record(results, step=6)
    assert (record["skipped"], record["loss"], record["gradient_norm"]) == (1, None, None)
    assert bad.running_loss == before.running_loss
    chex.assert_trees_all_equal(bad.learner.parameters, before.learner.parameters)
    assert bad.learner.optimizer_state == before.learner.optimizer_state
    good, _ = ran(breaking_at(before), chunk)
    for lane in range(LANES - 1):
        chex.assert_trees_all_equal(of_lane(bad.learner, lane), of_lane(good.learner, lane))
    chex.assert_trees_all_equal(of_lane(bad.learner, -1), of_lane(start.learner, -1))
    after, results = ran(bad, chunk, 3)
    metrics.check_finite(results, after)
    assert after.skipped == 1
    assert np.isfinite(results.gradient_norm)
    changed = jax.tree.map(jnp.subtract, after.learner.parameters, bad.learner.parameters)
    assert optax.tree.norm(changed) > 0


def test_a_loss_an_update_or_an_influence_that_is_not_finite_is_skipped_too():
    start, chunk = compiled("skip")
    for breaks, lost in (
        ({"infinite": 2}, [True] * LANES),
        ({"steep": 2}, [False] * LANES),
        ({"updates": 2}, [False] * LANES),
    ):
        before, _ = ran(breaking_at(start, **breaks), chunk)
        after, results = ran(before, chunk)
        metrics.check_finite(results, after)
        assert after.skipped == 1
        assert list(after.learner.fresh) == lost
        chex.assert_trees_all_equal(after.learner.parameters, before.learner.parameters)
    state, _ = ran(breaking_at(start), chunk, 2)
    own, scale = state.learner.influence
    own = jax.tree.map(lambda x: x.at[1].set(jnp.inf), own)
    after, results = ran(
        state._replace(learner=state.learner._replace(influence=(own, scale))), chunk
    )
    metrics.check_finite(results, after)
    assert list(after.learner.fresh) == [False, True, False]


def test_what_lanes_share_cannot_start_anew_and_stops_the_run():
    start, chunk = compiled("skip")
    before, _ = ran(breaking_at(start), chunk, 2)
    influence = (before.learner.influence[0], jnp.asarray(jnp.inf, float))
    state = before._replace(learner=before.learner._replace(influence=influence))
    after, results = ran(state, chunk)
    chex.assert_trees_all_equal(after.learner.parameters, before.learner.parameters)
    with pytest.raises(metrics.NonFiniteError, match=r"^learner\.influence\.1 is .* at step 3;"):
        metrics.check_finite(results, after)


def test_a_run_that_skips_too_often_stops():
    start, chunk = compiled("skip")
    state = breaking_at(start, infinite=1)._replace(skipped=jnp.asarray(99, jnp.int32))
    state, results = ran(state, chunk)
    metrics.check_finite(results, state)
    state, results = ran(breaking_at(state, infinite=2), chunk)
    with pytest.raises(metrics.NonFiniteError, match=r"^more than 100 segments .* at step 2;"):
        metrics.check_finite(results, state)


def test_a_trial_that_skips_leaves_the_others_as_they_are():
    start, _ = compiled("skip")
    built = program.build(config(on_nonfinite="skip", log_every=2))
    chunk = jax.jit(jax.vmap(built.run_chunk))

    def together(*states):
        return chunk(jax.tree.map(lambda *x: jnp.stack(x), *states))[0]

    one, other = breaking_at(start), breaking_at(start)._replace(key=jax.random.key(1))
    both = together(breaking_at(one, overflow=2), other)
    assert list(both.skipped) == [1, 0]
    undisturbed = together(one, other)
    mine, want = (jax.tree.map(lambda x: x[1], s) for s in (both, undisturbed))
    chex.assert_trees_all_equal(without_keys(mine), without_keys(want))
    assert list(both.learner.fresh[0]) == [False, False, True]
    assert not both.learner.fresh[1].any()


def test_with_several_updates_a_segment_and_kept_steps_the_other_lanes_go_on():
    lengths = {"segment_length": 2, "update_every": 1, "window": 4, "log_every": 2}
    start, chunk = compiled("skip", **lengths)
    before, _ = ran(breaking_at(start, overflow=7), chunk, 3)
    bad, results = ran(before, chunk)
    metrics.check_finite(results, bad)
    assert bad.skipped == 1
    chex.assert_trees_all_equal(bad.learner.parameters, before.learner.parameters)
    assert list(bad.learner.fresh) == [False, False, True]
    keep = bad.learner.kept.steps.keep
    assert jnp.all(keep[:, :-1] == 1)
    assert jnp.all(keep[:, -1] == 0)
    after, results = ran(bad, chunk, 4)
    metrics.check_finite(results, after)
    assert after.skipped == 1
    # A gradient that is not finite does not reach the second step of its segment.
    bad, results = ran(breaking_at(before, overflow=NEVER, steep=7), chunk)
    metrics.check_finite(results, bad)
    assert (bad.skipped, bad.learner.fresh.any()) == (1, False)


def infinite(*, batch_size: int, at: int) -> Task:
    """`broken` with an infinite loss at a time step."""
    task = broken(batch_size=batch_size)
    return task._replace(init=lambda key: {**task.init(key), "infinite": jnp.asarray(at)})


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_a_run_from_its_config_stops_or_skips(tmp_path, mode, monkeypatch, capsys):
    unsaved_pictures(monkeypatch)
    changes = {"task.name": f"{__name__}:infinite", "task.at": 6, "checkpoint_every": 4}
    run = config(on_nonfinite=mode, num_steps=12, **changes)
    if mode == "stop":
        message = r"the loss is no longer finite at step 6; .* \(the last good .* of step 4\)"
        with pytest.raises(metrics.NonFiniteError, match=message):
            train.train(run, tmp_path)
        assert [record["step"] for record in records(tmp_path)] == [4]
    else:
        summary = train.train(run, tmp_path)
        assert summary["skipped"] == 1
        assert [record["skipped"] for record in records(tmp_path)] == [0, 1, 1]
        assert re.search(r"segments skipped +│ 1 ", capsys.readouterr().out)


def test_a_validation_loss_that_is_not_finite_is_shown_as_such():
    record = {"running_loss": 1.0, "valid_loss": None, "steps_per_second": 3.0}
    assert display.status(record) == "loss 1.000  valid not finite  3 steps/s"
