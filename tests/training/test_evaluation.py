from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, learning, losses, readouts
from kfrtrl_jax.tasks import Batch, Task
from kfrtrl_jax.training import evaluation

VOCABULARY = 5
TASK = Task(
    batch_size=1,
    example_input=jnp.int32(0),
    input_size=VOCABULARY,
    output_size=VOCABULARY,
    loss=losses.cross_entropy(),
    chance_loss=0.0,
    init=None,
    sample=None,
    score=losses.accuracy(),
)


def stream_of(tokens, reset=None, weight=None):
    reset = np.zeros(len(tokens) - 1, bool) if reset is None else reset
    return Batch(tokens[:-1], tokens[1:], reset, weight)


def total(network, stream, **lengths):
    """The means over a stream."""
    cell, readout, parameters = network
    return evaluation.means(evaluation.totals(cell, readout, TASK, parameters, stream, **lengths))


@pytest.fixture
def network():
    cell = cells.on_tokens(cells.lstm(input_size=VOCABULARY, hidden_size=4), VOCABULARY)
    readout = readouts.linear(input_size=4, output_size=VOCABULARY, init_scale=1.0)
    keys = jax.random.split(jax.random.key(0))
    return cell, readout, {"cell": cell.init(keys[0]), "readout": readout.init(keys[1])}


def plain_losses(network, tokens, start, stop, warm_up):
    """Bits of the characters start + 1 to stop, read from `warm_up` characters before."""
    cell, readout, parameters = network
    carry, losses = cell.initial_carry(), []
    for i in range(max(0, start - warm_up), stop):
        carry, logits = learning.predict(cell, readout, parameters, carry, tokens[i])
        if i >= start:
            losses.append(-jax.nn.log_softmax(logits)[tokens[i + 1]] / math.log(2))
    return losses


@pytest.mark.parametrize(("lanes", "length"), [(1, 12), (3, 14), (4, 14), (100, 5)])
def test_every_character_but_the_first_is_predicted_once(network, lanes, length):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, length))
    found = total(network, stream_of(tokens), lanes=lanes, warm_up=3)
    count = length - 1
    stretch = -(-count // min(lanes, count))
    expected = [
        loss
        for start in range(0, count, stretch)
        for loss in plain_losses(network, tokens, start, min(start + stretch, count), 3)
    ]
    assert len(expected) == count
    np.testing.assert_allclose(found.loss, np.mean(expected), rtol=1e-10)


def test_an_untrained_uniform_network_has_the_entropy_of_guessing(network):
    cell, readout, parameters = network
    flat = {**parameters, "readout": jax.tree.map(jnp.zeros_like, parameters["readout"])}
    tokens = jnp.zeros(50, jnp.uint8)
    found = total((cell, readout, flat), stream_of(tokens), lanes=3)
    np.testing.assert_allclose(found.loss, math.log2(VOCABULARY), rtol=1e-6)
    assert found.score == 1


def test_weights_and_restarts_of_a_stream_hold(network):
    cell, readout, parameters = network
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, VOCABULARY, 13)
    weight, reset = rng.integers(0, 3, 12) * 1.0, np.arange(12) == 5
    carry, weighted, right = cell.initial_carry(), [], []
    for i in range(12):
        carry = cell.initial_carry() if reset[i] else carry
        carry, logits = learning.predict(cell, readout, parameters, carry, tokens[i])
        weighted.append(-jax.nn.log_softmax(logits)[tokens[i + 1]] / math.log(2) * weight[i])
        right.append((np.argmax(logits) == tokens[i + 1]) * weight[i])
    found = total(network, stream_of(tokens, reset, weight), lanes=3, warm_up=100)
    np.testing.assert_allclose(found.loss, np.sum(weighted) / weight.sum(), rtol=1e-10)
    np.testing.assert_allclose(found.score, np.sum(right) / weight.sum(), rtol=1e-10)
