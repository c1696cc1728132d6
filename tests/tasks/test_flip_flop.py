import numpy as np

from kfrtrl_jax import tasks
from tests.helpers.streams import require_frequencies, sequences, stream


def test_targets_are_the_last_pulses():
    batch = stream(tasks.flip_flop(batch_size=32, n_bits=2, length=20, pulse_probability=0.2), 404)
    assert batch.weight is None
    found = sequences(batch)
    assert len(found) == 32 * 20
    inputs = np.array([inputs for inputs, _, _ in found])
    targets = np.array([targets for _, targets, _ in found])
    assert set(np.unique(inputs)) == {-1, 0, 1}
    assert (inputs[:, 0] != 0).all()
    last = inputs[:, 0]
    for pulses, held in zip(inputs.swapaxes(0, 1), targets.swapaxes(0, 1)):
        last = np.where(pulses == 0, last, pulses)
        np.testing.assert_array_equal(held, last)
    later = inputs[:, 1:]
    require_frequencies([np.sum(later == x) for x in (-1, 0, 1)], [0.1, 0.8, 0.1])
    first = inputs[:, 0] @ [2, 1]
    require_frequencies([np.sum(first == x) for x in (-3, -1, 1, 3)], [0.25] * 4)
    # The channels' pulses are independent.
    both = (later != 0).all(axis=-1)
    require_frequencies([both.sum(), (~both).sum()], [0.04, 0.96])
