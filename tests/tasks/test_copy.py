import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import tasks
from kfrtrl_jax._src.tasks.copy import CopyState

START, FILLER = 2, 3
GUESSING = 2.0


@functools.cache
def compiled(**kwargs):
    """The task, and its scan over keys [N] and losses [N]."""
    task = tasks.copy(**kwargs)

    def step(state, xs):
        state, batch = tasks.draw(task, state, *xs)
        return state, (task.metrics(state)["sequence_length"], state.running_loss, batch)

    return task, jax.jit(lambda state, *xs: jax.lax.scan(step, state, xs)[1])


def run(losses, *, length=1, **kwargs):
    """Feeds `losses` [N], from T* = length; returns T* and running loss [N], batch [N, B]."""
    _, scan = compiled(**kwargs)
    state: CopyState = tasks.copy(**kwargs, initial_length=length).init(jax.random.key(7))
    keys = jax.random.split(jax.random.key(0), len(losses))
    return jax.tree.map(np.asarray, scan(state, keys, jnp.asarray(losses)))


def run_at_length(length, steps, **kwargs):
    """The stream of a curriculum that stays at T* = length."""
    return run(np.full(steps, GUESSING), length=length, **kwargs)[2]


def sequences(batch, lane):
    """The complete sequences of a lane: their first steps and their bits."""
    starts = np.flatnonzero(batch.reset[:, lane])
    assert starts[0] == 0
    for start, end in itertools.pairwise(starts):
        size = (end - start - 2) // 2
        inputs, targets = batch.inputs[start:end, lane], batch.targets[start:end, lane]
        bits = inputs[1 : size + 1]
        assert set(bits) <= {0, 1}
        np.testing.assert_array_equal(inputs, [START, *bits, *[FILLER] * (size + 1)])
        np.testing.assert_array_equal(targets, [*[FILLER] * (size + 1), START, *bits])
        yield start, bits


@pytest.mark.parametrize("shortening", [0, 4])
def test_lanes_are_whole_sequences_back_to_back(shortening):
    losses = np.random.default_rng(0).uniform(0, 0.1, 3000)
    star, _, batch = run(losses, batch_size=3, shortening=shortening, decay=0.9)
    assert batch.inputs.dtype == batch.targets.dtype == np.int32
    assert batch.reset.dtype == bool
    # The curriculum goes on while the sequences are checked.
    assert star[-1] > 5
    for lane in range(3):
        found = list(sequences(batch, lane))
        assert found
        for start, bits in found:
            assert max(1, star[start] - shortening) <= len(bits) <= star[start]


def test_long_sequences_are_whole_and_their_bits_fair():
    batch = run_at_length(600, 4000, batch_size=2)
    found = [bits for lane in range(2) for _, bits in sequences(batch, lane)]
    bits = np.concatenate(found)
    assert min(map(len, found)) >= 596
    assert abs(bits.mean() - 0.5) < 4 * 0.5 / np.sqrt(bits.size)
    # Neither lanes nor sequences repeat one another.
    assert len({tuple(b[:100]) for b in found}) == len(found)


def test_bits_are_independent_of_those_next_to_them():
    batch = run_at_length(10, 2000, batch_size=32, shortening=0)
    bits = np.array([b for lane in range(32) for _, b in sequences(batch, lane)]) - 0.5
    correlation = 4 * bits.T @ bits / len(bits) - np.eye(10)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(bits))


def test_lengths_are_uniform_below_the_longest():
    batch = run_at_length(10, 2000, batch_size=16)
    sizes = [len(bits) for lane in range(16) for _, bits in sequences(batch, lane)]
    counts = np.bincount(sizes, minlength=11)
    assert counts[:6].sum() == 0
    expected = len(sizes) / 5
    np.testing.assert_allclose(counts[6:], expected, atol=5 * np.sqrt(expected))
    # What would be shorter than one bit is one bit.
    batch = run_at_length(3, 2000, batch_size=16)
    sizes = [len(bits) for lane in range(16) for _, bits in sequences(batch, lane)]
    np.testing.assert_allclose(np.mean(np.array(sizes) == 1), 3 / 5, atol=0.05)


def test_curriculum_goes_up_at_sequence_starts_by_the_running_loss():
    parameters = {"threshold": 0.2, "restart": 0.5, "decay": 0.9, "initial_loss": 1.0}
    losses = np.random.default_rng(2).uniform(0, 0.4, 2000)
    # The first loss is of no step, whatever it is.
    losses[0] = np.nan
    star, averages, batch = run(losses, batch_size=2, **parameters)

    length, average, raised = 1, parameters["initial_loss"], []
    for t, loss in enumerate(losses):
        if t:
            average = parameters["decay"] * average + (1 - parameters["decay"]) * loss
        if batch.reset[t].any() and average < parameters["threshold"]:
            length, average = length + 1, parameters["restart"]
            raised.append(t)
        assert star[t] == length
        np.testing.assert_allclose(averages[t], average, rtol=1e-12)
    assert len(raised) > 10


def test_curriculum_stays_while_the_loss_is_high():
    star, averages, batch = run(np.full(500, 0.2), batch_size=4)
    assert set(star) == {1}
    np.testing.assert_allclose(averages[-1], 0.2 + 1.8 * 0.999**499, rtol=1e-12)
    # All sequences are of one bit: four steps.
    np.testing.assert_array_equal(batch.reset, (np.arange(500) % 4 == 0)[:, None].repeat(4, 1))


def test_lanes_that_start_together_raise_the_length_once():
    # Of losses of 0, it takes 2589 to get from 2.0 below 0.15, and 693 from 0.3: ln(ratio) / ln(0.999).
    # With one bit every lane starts at every fourth step.
    star, averages, _ = run(np.zeros(3300), batch_size=8, shortening=0)
    first = 2592
    assert star[first - 1] == 1
    assert star[first] == 2
    np.testing.assert_allclose(averages[first - 1], 2.0 * 0.999 ** (first - 1), rtol=1e-10)
    assert averages[first] == 0.3
    # The strings are of two bits now, six steps: the first start that is 693 steps later or more.
    second = first + 6 * 116
    assert star[second - 1] == 2
    assert star[second] == 3


def test_every_lane_starts_at_the_first_step():
    task = tasks.copy(batch_size=5)
    assert task.input_size == task.output_size == 4
    assert task.held_out == {}
    first = task.observe(task.init(jax.random.key(0)), jnp.nan)
    _, batch = jax.jit(task.sample)(first, jax.random.key(1))
    assert batch.reset.all()
    np.testing.assert_array_equal(batch.inputs, START)
    np.testing.assert_array_equal(batch.targets, FILLER)


@pytest.mark.parametrize("typed", [True, False])
def test_keys_that_do_not_mix_what_is_folded_in_are_refused(typed):
    task = tasks.copy(batch_size=2)
    for kind in ("threefry2x32", "rbg"):
        task.init(jax.random.key(0, impl=kind))
    with jax.default_prng_impl("unsafe_rbg"), pytest.raises(ValueError, match="use threefry2x32"):
        task.init(jax.random.key(0) if typed else jax.random.PRNGKey(0))


def test_seeds_and_float_arguments_may_be_mapped():
    @jax.jit
    def stream(key, threshold, initial_loss):
        task = tasks.copy(batch_size=2, threshold=threshold, initial_loss=initial_loss, decay=0.9)

        def step(state, key):
            return tasks.draw(task, state, key, 0.1)

        state, batch = jax.lax.scan(step, task.init(key), jax.random.split(key, 100))
        return state.sequence_length, batch

    keys = jax.random.split(jax.random.key(0), 3)
    arguments = keys, jnp.array([0.15, 0.15, 0.05]), jnp.array([0.2, 0.2, 0.2])
    mapped = jax.jit(jax.vmap(stream))(*arguments)
    for i in range(3):
        one_of = jax.tree.map(lambda x, i=i: x[i], mapped)
        single = stream(*(a[i] for a in arguments))
        chex.assert_trees_all_equal(single, one_of)
    assert (mapped[1].inputs[0] != mapped[1].inputs[1]).any()
    assert mapped[0][0] > 1
    assert mapped[0][2] == 1


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_state_keeps_its_types_in_a_scan(x64, make_key, dtype):
    with jax.enable_x64(x64):
        task = tasks.copy(batch_size=3)
        state = task.init(make_key(0))
        new, batch = jax.eval_shape(
            lambda *xs: tasks.draw(task, *xs), state, make_key(1), dtype(1.0)
        )
        before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == before
        assert {x.shape for x in jax.tree.leaves(batch)} == {(3,)}


@pytest.mark.parametrize(
    "kwargs",
    [
        {"batch_size": 0},
        {"batch_size": 1, "shortening": -1},
        {"batch_size": 1, "initial_length": 0},
    ],
)
def test_impossible_sizes_are_refused(kwargs):
    with pytest.raises(ValueError, match="must"):
        tasks.copy(**kwargs)
