import numpy as np

from kfrtrl_jax import tasks
from tests.helpers.streams import require_frequencies, require_mean, sequences, stream


def test_sequences_add_one_marked_value_of_each_half():
    batch = stream(tasks.adding(batch_size=32, length=11), 11 * 30 + 5)
    found = sequences(batch)
    assert len(found) == 32 * 30
    places = []
    for inputs, targets, weight in found:
        value, marker = inputs.T
        np.testing.assert_array_equal(weight, [0] * 10 + [1])
        np.testing.assert_allclose(targets[:, 0], np.cumsum(value * marker), rtol=1e-15)
        assert set(marker) == {0, 1}
        first, second = np.flatnonzero(marker)
        assert first < 5 <= second
        places.append((first, second))
    first, second = np.array(places).T
    require_frequencies(np.bincount(first), np.full(5, 1 / 5))
    require_frequencies(np.bincount(second - 5), np.full(6, 1 / 6))
    joint = np.bincount(6 * first + second - 5, minlength=30)
    require_frequencies(joint, np.full(30, 1 / 30))


def test_values_are_uniform_and_predicting_one_has_the_chance_loss():
    task = tasks.adding(batch_size=32, length=2)
    batch = stream(task, 400)
    values = batch.inputs[..., 0].ravel()
    assert values.min() >= 0
    assert values.max() < 1
    require_frequencies(np.histogram(values, 10, (0, 1))[0], np.full(10, 1 / 10))
    # Of the squared error: the fourth moment of a sum of two uniform numbers is 1/15.
    errors = (np.array([targets[-1, 0] for _, targets, _ in sequences(batch)]) - 1) ** 2
    require_mean(errors, task.chance_loss, np.sqrt(1 / 15 - 1 / 36))
