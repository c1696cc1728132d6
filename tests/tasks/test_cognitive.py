import math

import jax
import numpy as np
import pytest

from kfrtrl_jax import tasks
from tests.helpers.streams import require_frequencies, require_mean, sequences, stream


def test_delayed_match_compares_the_test_with_the_sample():
    found = sequences(stream(tasks.delayed_match(batch_size=32), 32 * 20 + 7))
    assert len(found) == 32 * 20
    inputs = np.array([inputs for inputs, _, _ in found])
    epochs = np.repeat(["fixation", "sample", "delay", "test", "decision"], [3, 5, 10, 5, 9])
    shown = (epochs == "sample") | (epochs == "test")
    np.testing.assert_array_equal(inputs[..., 0], np.tile(epochs != "decision", (len(inputs), 1)))
    np.testing.assert_array_equal(inputs[:, ~shown, 1:], 0)
    # A stimulus is (1, 0) or (0, 1), with noise of standard deviation 0.1 at every step.
    sample, test = (inputs[:, epochs == name, 1:].mean(1).round() for name in ("sample", "test"))
    np.testing.assert_array_equal(sample.sum(1), 1)
    same = (sample == test).all(1)
    np.testing.assert_array_equal((sample == 1 - test).all(1), ~same)
    clean = np.where((epochs == "sample")[:, None], sample[:, None], test[:, None])
    noise = (inputs[..., 1:] - clean)[:, shown].ravel() / 0.1
    require_mean(noise, 0, 1)
    require_mean(noise**2, 1, math.sqrt(2))
    require_mean(noise**4, 3, math.sqrt(96))
    require_mean(noise[1:] * noise[:-1], 0, 1)
    for match, (_, targets, weight) in zip(same, found):
        label = 1 if match else 2
        np.testing.assert_array_equal(targets, np.where(epochs == "decision", label, 0))
        np.testing.assert_array_equal(weight, epochs == "decision")
    codes = (2 * same + sample[:, 0]).astype(int)
    require_frequencies(np.bincount(codes), [1 / 4] * 4)


def test_context_integration_decides_by_one_modality():
    # Little noise, so that all that was drawn can be read from the inputs.
    task = tasks.context_integration(batch_size=64, sigma=0.01, dim_ring=3)
    batch = stream(task, 800)
    angles = 2 * np.pi / 3 * np.arange(3)
    drawn, noise = [], []
    for inputs, targets, weight in sequences(batch):
        delay = len(inputs) - 3 - 7 - 1
        epochs = np.repeat(["fixation", "stimulus", "delay", "decision"], [3, 7, delay, 1])
        shown = epochs == "stimulus"
        context = int(inputs[0, -1])
        np.testing.assert_array_equal(
            inputs[:, 7:], np.tile([1 - context, context], (len(inputs), 1))
        )
        np.testing.assert_array_equal(inputs[:, 0], epochs == "fixation")
        np.testing.assert_array_equal(inputs[~shown, 1:7], 0)
        stimuli = inputs[shown, 1:7].reshape(7, 2, 3)
        choices = stimuli.mean(0).argmax(axis=1)
        strength = 200 * (stimuli.mean(0).max(axis=1) - 0.5)
        coherences = np.array([5, 15, 50])[np.abs(strength[:, None] - [5, 15, 50]).argmin(axis=1)]
        cosines = np.cos(angles - angles[choices][:, None])
        noise.append((stimuli - 0.5 - coherences[:, None] / 200 * cosines).ravel())
        label = 1 + choices[context]
        np.testing.assert_array_equal(targets, np.where(epochs == "decision", label, 0))
        np.testing.assert_array_equal(weight, epochs == "decision")
        drawn.append([context, *choices, *(np.searchsorted([5, 15, 50], coherences))])
    noise = np.concatenate(noise) / 0.001
    require_mean(noise, 0, 1)
    require_mean(noise**2, 1, math.sqrt(2))
    codes = np.array(drawn) @ [81, 27, 9, 3, 1]
    require_frequencies(np.bincount(codes, minlength=162), np.full(162, 1 / 162))
    # The first 15 delays of every lane, as a finite stream has too few of the long ones.
    lengths = np.array([np.diff(np.flatnonzero(batch.reset[:, lane]))[:15] for lane in range(64)])
    delays = lengths.ravel() - 11
    assert delays.min() >= 3
    assert delays.max() <= 29
    edges = np.exp(-np.array([3, 4, 5, 6, 8, 10, 15, 30]) * 100 / 600)
    probabilities = (edges[:-1] - edges[1:]) / (edges[0] - edges[-1])
    require_frequencies(np.histogram(delays, [3, 4, 5, 6, 8, 10, 15, 30])[0], probabilities)


@pytest.mark.parametrize("make", [tasks.delayed_match, tasks.context_integration])
def test_all_epochs_count_if_asked(make):
    task = make(batch_size=2, every_step=True)
    batch = jax.eval_shape(lambda key: task.sample(task.init(key), key)[1], jax.random.key(0))
    assert batch.weight is None
    assert 0.3 < task.chance_loss < 1.5


@pytest.mark.parametrize("name", ["DelayMatchSample-v0", "ContextDecisionMaking-v0"])
def test_trials_are_those_of_neurogym(name):
    neurogym = pytest.importorskip("neurogym")
    context = name.startswith("Context")
    environment = neurogym.make(name, **({"use_expl_context": True} if context else {})).unwrapped
    task = (tasks.context_integration if context else tasks.delayed_match)(batch_size=64)
    assert environment.observation_space.shape == (task.input_size,)
    assert environment.action_space.n == task.output_size
    ours = sequences(stream(task, 64 * 10))

    theirs = []
    for _ in range(2000):
        environment.new_trial()
        theirs.append((environment.ob.copy(), environment.gt.copy()))

    def layouts(trials):
        """Trials by where their inputs are 0, 1 or anything else, and by where they have a label."""
        found = {}
        for inputs, labels, *_ in trials:
            pattern = np.where(np.isin(inputs, [0, 1]), inputs, -1).round().astype(int)
            found.setdefault((pattern.tobytes(), (labels > 0).tobytes()), []).append(inputs)
        return found

    def moments(found):
        """Mean and deviation of the stimuli, and the deviation of their differences in time."""
        trials = [inputs for group in found.values() for inputs in group]
        shown = [(x != 0) & (x != 1) for x in trials]
        values = np.concatenate([x[here] for x, here in zip(trials, shown)])
        noise = np.concatenate(
            [np.diff(x, axis=0)[here[1:] & here[:-1]] for x, here in zip(trials, shown)]
        )
        return values.mean(), values.std(), noise.std()

    mine, yours = layouts(ours), layouts(theirs)
    common = mine.keys() & yours.keys()
    # The longest delays are rare.
    assert sum(len(mine[key]) for key in common) > 0.95 * len(ours)
    assert sum(len(yours[key]) for key in common) > 0.95 * len(theirs)
    np.testing.assert_allclose(moments(mine), moments(yours), rtol=0.03)
