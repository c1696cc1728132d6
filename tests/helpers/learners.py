"""Learners of small cells, and their segments."""

import jax
import optax

from kfrtrl_jax.learning import make_learner
from tests.trajectories import BATCH_SIZE, READOUT, sequence


def segments(batches, length):
    return jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), batches)


def learner_of(cell, estimator, optimizer=None, **kwargs):
    return make_learner(
        cell,
        READOUT,
        estimator,
        optimizer or optax.sgd(0.1),
        batch_size=BATCH_SIZE,
        example_input=sequence(1)[0][0, 0],
        **kwargs,
    )
