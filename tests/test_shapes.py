"""Wrong shapes are refused where they enter, in one line that says what would be right."""

import jax
import jax.numpy as jnp
import optax
import pytest

from kfrtrl_jax import cells, estimators, optimizers, readouts, tasks, trajectories
from kfrtrl_jax.credit import dni
from kfrtrl_jax.learning import make_learner
from kfrtrl_jax.tasks import Batch

KEY = jax.random.key(0)
TASK = tasks.copy(batch_size=3)


def learner_of(batch_size=3, readout_size=2, loss=None):
    return make_learner(
        cells.on_tokens(cells.vanilla(input_size=4, hidden_size=2), 4),
        readouts.linear(input_size=readout_size, output_size=4),
        estimators.truncated(),
        optax.sgd(0.1),
        batch_size=batch_size,
        example_input=jnp.int32(0),
        loss=loss,
    )


def step(learner=None, state=None, **changes):
    learner = learner or learner_of()
    tokens = jnp.zeros((1, 3), jnp.int32)
    segment = Batch(tokens, tokens, jnp.zeros((1, 3), bool))._replace(**changes)
    return learner.step(state or learner.init(KEY), segment)


def predict(shape):
    credit = dni()
    return credit.predict(credit.init(learner_of().linearizer.structure, KEY), jnp.zeros(shape))


REFUSED = {
    "no key": (lambda: learner_of().init(0), r"key must be a single PRNG key, .* got int\d+\[\]"),
    "keys": (lambda: TASK.init(jax.random.split(KEY)), r"single PRNG key, .* got key.*\[2\]"),
    "targets": (
        lambda: step(targets=jnp.zeros(3, int)),
        r"segment.targets must have the leading axes \[1, 3\], got int\d+\[3\]",
    ),
    "weights": (
        lambda: step(weight=jnp.ones(3)),
        r"segment.weight must have shape \[1, 3\], got float\d+\[3\]",
    ),
    "a loss of several numbers": (
        lambda: step(learner_of(loss=lambda y, target: y - target)),
        r"the loss of one lane must be a scalar, got one of shape \[4\]: take its mean",
    ),
    "another batch size": (
        lambda: step(state=learner_of(batch_size=2).init(KEY)),
        r"state.carry must have the leading axes \[3\], got float\d+\[2, 2\]; .* this learner",
    ),
    "readout": (
        lambda: step(learner_of(readout_size=5)),
        r"the readout's input must have shape \[5\], got float\d+\[2\]; input_size must be",
    ),
    "loss": (
        lambda: tasks.draw(TASK, TASK.init(KEY), KEY, jnp.zeros(3)),
        r"loss must have shape \[\], got float\d+\[3\]; pass the mean",
    ),
    "carry": (lambda: predict((2,)), r"carry must have shape \[B, 2\], got float\d+\[2\]"),
    "gradients": (lambda: optimizers.clip_cell(1.0).update([], ()), '"cell": ..., "readout"'),
    "cotangents": (
        lambda: trajectories.gradients(estimators.rtrl(), (), jnp.zeros((3, 2))),
        r"cotangents must have shape \[C, B, n\], got float\d+\[3, 2\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_shape_is_one_line(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_raw_keys_are_keys():
    assert learner_of().init(jax.random.PRNGKey(0)).carry.shape == (3, 2)
