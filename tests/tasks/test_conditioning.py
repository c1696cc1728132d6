import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import tasks
from kfrtrl_jax._src.tasks.conditioning import activation_patterns

STEPS, LANES = 6000, 12
# Where returns no longer depend on what follows the end of the stream, to within 1e-9.
SUMMED = STEPS - 250


@functools.cache
def stream(name, **kwargs):
    """The task's stream of STEPS steps: observations, those that follow, targets, resets."""
    task = tasks.TASKS[name](batch_size=LANES, **kwargs)

    @jax.jit
    def run(key):
        first, rest = jax.random.split(key)
        return jax.lax.scan(task.sample, task.init(first), jax.random.split(rest, STEPS))[1]

    batch = jax.tree.map(np.asarray, run(jax.random.key(0)))
    assert batch.weight is None
    return *batch.inputs, batch.targets, batch.reset


def begins(on):
    """Where a stimulus, on [STEPS, ...], begins; not counting what is on at the first step."""
    return on[1:] & ~on[:-1]


def lengths(on):
    """How long a stimulus of one lane, on [STEPS], is on each time, the first and last left out."""
    starts, ends = np.flatnonzero(begins(on)), np.flatnonzero(begins(~on))
    ends = ends[ends > starts[0]]
    return ends - starts[: len(ends)]


def trials(observations, lane, num_cs):
    """The first step of every trial with a CS, and the steps to its US; -1 if there is none."""
    on = observations[:, lane] > 0
    cs = on[:, 1 : 1 + num_cs].any(axis=1)
    starts = 1 + np.flatnonzero(begins(cs))
    us = 1 + np.flatnonzero(begins(on[:, 0]))
    for start in starts[starts < STEPS - 200]:
        later = us[(us > start) & (us < start + 80)]
        yield start, later[0] - start if later.size else -1


@pytest.mark.parametrize(
    ("name", "gamma"),
    [("trace_conditioning", 0.9), ("trace_patterning", 0.9), ("noisy_patterning", 0.75)],
)
def test_targets_are_the_us_that_follows_and_its_exact_return(name, gamma):
    now, following, (cumulant, discount, returns), reset = stream(name)
    np.testing.assert_array_equal(following[:-1], now[1:])
    np.testing.assert_array_equal(cumulant, following[..., 0])
    np.testing.assert_array_equal(discount, np.full((STEPS, LANES), gamma))
    np.testing.assert_array_equal(reset, np.arange(STEPS)[:, None].repeat(LANES, 1) == 0)
    expected = np.zeros((STEPS + 1, LANES))
    for t in range(STEPS - 1, -1, -1):
        expected[t] = cumulant[t] + gamma * expected[t + 1]
    np.testing.assert_allclose(returns[:SUMMED], expected[:SUMMED], atol=2e-9)
    assert set(np.unique(now)) == {0, 1}


@pytest.mark.parametrize("isi", [2, 30])
def test_returns_are_exact_at_other_discounts(isi):
    gamma = 1 - 1 / isi
    _, _, (cumulant, discount, returns), _ = stream("trace_conditioning", isi=isi, min_iti=30)
    assert discount[0, 0] == gamma
    expected = np.zeros((STEPS + 1, LANES))
    for t in range(STEPS - 1, -1, -1):
        expected[t] = cumulant[t] + gamma * expected[t + 1]
    np.testing.assert_allclose(returns[: STEPS - 900], expected[: STEPS - 900], atol=2e-9)


def test_trace_conditioning_has_the_papers_times():
    now, *_ = stream("trace_conditioning")
    assert now.shape == (STEPS, LANES, 12)
    isis, periods = [], []
    for lane in range(LANES):
        assert set(lengths(now[:, lane, 1] > 0)) == {4}
        assert set(lengths(now[:, lane, 0] > 0)) == {2}
        found = list(trials(now, lane, 1))
        isis += [isi for _, isi in found]
        # From one US to the next CS.
        periods += [b - a - isi for (a, isi), (b, _) in itertools.pairwise(found)]
    counts = np.bincount(isis, minlength=14)
    assert counts[:7].sum() == 0
    expected = len(isis) / 7
    np.testing.assert_allclose(counts[7:], expected, atol=5 * np.sqrt(expected))
    assert len(counts) == 14
    assert min(periods) >= 80
    assert max(periods) <= 120
    assert len(set(periods)) == 41
    assert np.mean(periods) == pytest.approx(100, abs=5 * 11.8 / np.sqrt(len(periods)))


def test_poisson_distractors_begin_at_their_rates():
    now, *_ = stream("trace_conditioning")
    on = now[..., 2:] > 0
    for i in range(10):
        rate = 1 / (10 * (i + 1))
        assert set(lengths(on[:, 0, i])) == {4}
        # A period is the wait of 1 / rate steps for the beginning and 4 steps.
        expected = LANES * STEPS / (4 + 1 / rate)
        assert begins(on[..., i]).sum() == pytest.approx(expected, abs=5 * np.sqrt(expected))


@pytest.mark.parametrize(
    ("name", "noise", "isis"),
    [("trace_patterning", 0.0, set(range(7, 14))), ("noisy_patterning", 0.1, {4})],
)
def test_us_follows_the_activation_patterns(name, noise, isis):
    now, *_ = stream(name)
    patterns = {tuple(p) for p in activation_patterns(6, 10, 0)}
    assert len(patterns) == 10
    assert {sum(p) for p in patterns} == {3}
    active, rewarded, distractors = [], [], []
    for lane in range(LANES):
        for start, isi in trials(now, lane, 6):
            on = now[start, lane] > 0
            np.testing.assert_array_equal(
                now[start : start + 4, lane, 1:], now[start, lane, 1:][None].repeat(4, 0)
            )
            assert not now[start + 4, lane, 1:].any()
            active.append(tuple(on[1:7]) in patterns)
            rewarded.append(isi >= 0)
            distractors.append(on[7:])
            assert isi in isis | {-1}
    active, rewarded, count = np.array(active), np.array(rewarded), len(active)
    assert count > 500
    # Trials without any CS, half of a 64th of all, are not among these.
    assert np.mean(active) == pytest.approx(0.5, abs=0.01 + 2.5 / np.sqrt(count))
    assert np.mean(active != rewarded) == pytest.approx(noise, abs=2.5 * np.sqrt(noise / count))
    assert np.mean(distractors, axis=0) == pytest.approx(np.full(5, 0.5), abs=2.5 / np.sqrt(count))


def test_score_is_the_square_return_error_of_the_first_value():
    task = tasks.trace_patterning(batch_size=1)
    prediction = (jnp.array([0.5]), jnp.array([7.0]))
    target = (jnp.array(1.0), jnp.array(0.9), jnp.array(2.0))
    assert task.score.function(prediction, target) == pytest.approx(1.5**2)
    assert task.loss.scale * task.loss.function(prediction, target) == pytest.approx(
        (1 + 6.3 - 0.5) ** 2
    )


def test_chance_loss_is_that_of_predicting_nothing():
    for name in ("trace_conditioning", "trace_patterning", "noisy_patterning"):
        _, _, (cumulant, _, _), _ = stream(name)
        chance = tasks.TASKS[name](batch_size=1).chance_loss
        assert np.mean(cumulant**2) == pytest.approx(chance, rel=0.15)


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("trace_conditioning", {"batch_size": 0}, "batch_size must be at least 1"),
        ("trace_conditioning", {"isi": 1}, "isi must be at least 2"),
        ("trace_conditioning", {"num_distractors": 11}, "in 0..10"),
        ("noisy_patterning", {"min_iti": 3}, "min_iti must be at least 4"),
        ("noisy_patterning", {"min_iti": 90, "max_iti": 80}, "at most max_iti"),
        ("trace_patterning", {"num_cs": 1}, "num_cs must be at least 2"),
        ("trace_patterning", {"num_cs": 4, "num_patterns": 7}, "num_patterns must be in 1..6"),
        ("trace_patterning", {"num_distractors": -1}, "must be at least 0"),
        ("trace_patterning", {"pattern_seed": -1}, "must be at least 0"),
    ],
)
def test_impossible_sizes_are_refused(name, kwargs, said):
    with pytest.raises(ValueError, match=said):
        tasks.TASKS[name](**{"batch_size": 1, **kwargs})
