from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, learning, readouts
from kfrtrl_jax.training import evaluation

VOCABULARY = 5


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
    summed = evaluation.losses(*network, tokens, lanes=lanes, warm_up=3)
    count = length - 1
    stretch = -(-count // min(lanes, count))
    expected = [
        loss
        for start in range(0, count, stretch)
        for loss in plain_losses(network, tokens, start, min(start + stretch, count), 3)
    ]
    assert len(expected) == count
    np.testing.assert_allclose(evaluation.mean(summed, length), np.mean(expected), rtol=1e-10)


def test_an_untrained_uniform_network_has_the_entropy_of_guessing(network):
    cell, readout, parameters = network
    flat = {**parameters, "readout": jax.tree.map(jnp.zeros_like, parameters["readout"])}
    tokens = jnp.zeros(50, jnp.uint8)
    summed = evaluation.losses(cell, readout, flat, tokens, lanes=3)
    np.testing.assert_allclose(evaluation.mean(summed, 50), math.log2(VOCABULARY), rtol=1e-6)
