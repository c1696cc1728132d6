import jax
import numpy as np

from kfrtrl_jax import tasks
from tests.helpers.streams import require_frequencies, sequences, stream

BLANK, CUE = 5, 6


def test_symbols_are_recalled_after_the_cue():
    batch = stream(tasks.copy_fixed(batch_size=32, symbols=3, alphabet=5, delay=4), 10 * 30 + 3)
    found = sequences(batch)
    assert len(found) == 32 * 30
    strings = []
    for inputs, targets, weight in found:
        symbols = inputs[:3]
        np.testing.assert_array_equal(inputs[3:], [BLANK, BLANK, BLANK, CUE, BLANK, BLANK, BLANK])
        np.testing.assert_array_equal(targets, [*[BLANK] * 7, *symbols])
        np.testing.assert_array_equal(weight, [0] * 7 + [1] * 3)
        strings.append(symbols)
    # Uniform, and independent of one another.
    codes = np.array(strings) @ [25, 5, 1]
    require_frequencies(np.bincount(codes, minlength=125), np.full(125, 1 / 125))


def test_all_steps_count_if_asked():
    task = tasks.copy_fixed(batch_size=2, every_step=True)
    batch = jax.eval_shape(lambda key: task.sample(task.init(key), key)[1], jax.random.key(0))
    assert batch.weight is None
    # 110 blanks of 120 targets, the others 8 symbols.
    blank = 110 / 120
    entropy = -blank * np.log2(blank) - (1 - blank) * np.log2((1 - blank) / 8)
    np.testing.assert_allclose(task.chance_loss, entropy)
