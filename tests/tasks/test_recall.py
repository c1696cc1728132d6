import numpy as np

from kfrtrl_jax import tasks
from tests.helpers.streams import require_frequencies, sequences, stream


def test_t_maze_asks_for_the_cue_at_the_junction():
    found = sequences(stream(tasks.t_maze(batch_size=32, corridor=4), 5 * 20 + 2))
    assert len(found) == 32 * 20
    cues = []
    for inputs, targets, weight in found:
        cue = ["011", "110"].index("".join(f"{x:.0f}" for x in inputs[0]))
        np.testing.assert_array_equal(inputs[1:], [[1, 0, 1]] * 3 + [[0, 1, 0]])
        np.testing.assert_array_equal(weight, [0, 0, 0, 0, 1])
        assert targets[-1] == cue
        cues.append(cue)
    require_frequencies(np.bincount(cues), [1 / 2, 1 / 2])


def test_memory_chain_asks_for_one_bit_of_the_context():
    found = sequences(stream(tasks.memory_chain(batch_size=32, length=4, num_bits=3), 4 * 30 + 3))
    assert len(found) == 32 * 30
    drawn = []
    for inputs, targets, weight in found:
        left, query, context = inputs[:, 0], inputs[:, 1], inputs[:, 2:]
        np.testing.assert_allclose(left, [1, 0.75, 0.5, 0.25])
        np.testing.assert_array_equal(query[:-1], 0)
        assert set(context[0]) <= {-1, 1}
        np.testing.assert_array_equal(context[1:], 0)
        np.testing.assert_array_equal(weight, [0, 0, 0, 1])
        assert 2 * targets[-1] - 1 == context[0, int(query[-1])]
        drawn.append([*(context[0] > 0), query[-1]])
    codes = (np.array(drawn) @ [12, 6, 3, 1]).astype(int)
    require_frequencies(np.bincount(codes, minlength=24), np.full(24, 1 / 24))
