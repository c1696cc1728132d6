import numpy as np

from kfrtrl_jax import tasks
from tests.helpers.streams import require_frequencies, sequences, stream

BOUNDARY, A, B = 0, 1, 2


def test_strings_have_as_many_a_as_b_and_predictable_symbols_count():
    batch = stream(tasks.anbn(batch_size=32, max_n=6), 400)
    # A target is the next input, whatever the string.
    np.testing.assert_array_equal(batch.targets[:-1], batch.inputs[1:])
    sizes = []
    for inputs, targets, weight in sequences(batch):
        n = np.sum(inputs == A)
        np.testing.assert_array_equal(inputs, [BOUNDARY, *[A] * n, *[B] * n])
        assert targets[-1] == BOUNDARY
        np.testing.assert_array_equal(weight, [1, *[0] * n, *[1] * n])
        sizes.append(n)
    assert min(sizes) == 1
    # Whole strings of a finite stream are short more often, but not the first 20 of every lane, which
    # take 20 * 13 steps at most.
    first = [np.diff(np.flatnonzero(batch.reset[:, lane]))[:20] // 2 for lane in range(32)]
    require_frequencies(np.bincount(np.ravel(first), minlength=7)[1:], np.full(6, 1 / 6))
