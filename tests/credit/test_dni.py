import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfrtrl_jax import estimators
from kfrtrl_jax._src.base import Batch
from kfrtrl_jax.base import Cell, Structure
from kfrtrl_jax.credit import dni
from kfrtrl_jax.learning import make_learner
from kfrtrl_jax.readouts import Readout
from tests.trajectories import BATCH_SIZE, INPUT_SIZE, READOUT, SMALL_CELLS, flat, sequence

N, LANES = 3, 16
# Singular values between random rotations, for a memory of about ten steps.
A = (
    np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))[0]
    @ np.diag([0.95, 0.9, 0.85])
    @ np.linalg.qr(np.random.default_rng(1).normal(size=(N, N)))[0]
)
C = np.array([[1.0, 0.0], [0.5, -1.0], [0.0, 0.3]])


def linear_system(length, credit):
    """s' = s A and the loss |s' C|^2 / 2: the credit is linear in s."""
    return make_learner(
        Cell(
            init=lambda key: {"A": jnp.asarray(A)},
            initial_carry=lambda: jnp.zeros(N),
            step=lambda params, s, x: (s @ params["A"],) * 2,
        ),
        Readout(lambda key: {}, lambda params, s: s @ C),
        estimators.truncated(),
        optax.sgd(0.0),
        batch_size=LANES,
        example_input=jnp.zeros(()),
        segment_length=length,
        credit=credit,
        loss=lambda y, target: jnp.sum(y * y) / 2,
    )


def relative_error(found, expected):
    return jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)


@pytest.mark.parametrize("length", [1, 3])
def test_the_linear_model_learns_the_credit_of_a_linear_system(length):
    powers = [np.linalg.matrix_power(A, t) for t in range(1, 200)]
    terms = np.stack([p @ C @ C.T @ p.T for p in powers])
    credit = dni(learning_rate=3e-3)
    learner = linear_system(length, credit)
    zeros = jnp.zeros((length, LANES))
    segment = Batch(zeros, zeros, zeros.astype(bool))

    @jax.jit
    def learned(key):
        def one(state, key):
            carry = jax.random.normal(key, (LANES, N))
            return learner.step(state._replace(carry=carry), segment)[0], None

        state, _ = jax.lax.scan(one, learner.init(key), jax.random.split(key, 3000))
        test = jax.random.normal(jax.random.key(9), (100, N))
        return test, credit.predict(state.credit, test), learner.diagnostics(state)

    test, found, diagnostics = learned(jax.random.key(0))
    expected = test @ terms.sum(axis=0)
    # Bootstrapping matters: the credit from a single segment is far off.
    assert relative_error(test @ terms[:length].sum(axis=0), expected) > 0.4
    assert relative_error(found, expected) < 0.02
    assert diagnostics["credit/bootstrap_cosine"] > 0.99
    np.testing.assert_allclose(
        diagnostics["credit/norm"], np.linalg.norm(terms.sum(axis=0)), rtol=0.1
    )


def test_a_hidden_layer_learns_what_a_linear_model_cannot():
    """The target has no correlation with the carry: any linear model's relative error is 1."""
    credit = dni(hidden_units=32, learning_rate=1e-2)

    def target(s):
        return jnp.roll(s, 1, axis=1) * s

    @jax.jit
    def error(key):
        def one(state, key):
            s = jax.random.normal(key, (LANES, N))
            return credit.update(state, s, target(s)), None

        state = credit.init(Structure(LANES, N, (), jnp.float64), key)
        state, _ = jax.lax.scan(one, state, jax.random.split(key, 2000))
        test = jax.random.normal(jax.random.key(9), (100, N))
        return relative_error(credit.predict(state, test), target(test))

    assert error(jax.random.key(0)) < 0.25


def test_learning_starts_as_truncated_backpropagation():
    def learner_of(credit):
        return make_learner(
            SMALL_CELLS["vanilla"],
            READOUT,
            estimators.truncated(),
            optax.sgd(0.1),
            batch_size=BATCH_SIZE,
            example_input=jnp.zeros(INPUT_SIZE),
            segment_length=2,
            credit=credit,
        )

    with_credit, without = learner_of(dni()), learner_of(None)
    segment = Batch(*(x[1:3] for x in sequence(3)))

    @jax.jit
    def gradients(key):
        state = with_credit.init(key)
        state = state._replace(carry=0.5 + state.carry)
        named = with_credit.diagnostics(state)
        first, second = with_credit.gradient(state, segment), without.gradient(state, segment)
        again = with_credit.gradient(first[1], segment), without.gradient(first[1], segment)
        return named, *(flat(result[0]) for result in (first, second, *again))

    named, first, second, learning, truncated = gradients(jax.random.key(0))
    assert named["credit/bootstrap_cosine"] == 0
    np.testing.assert_allclose(first, second, rtol=1e-12)
    assert relative_error(learning, truncated) > 1e-5


def test_every_credit_is_0_at_the_start():
    structure = Structure(LANES, N, (), jnp.float32)

    @jax.jit
    def found(key):
        models = [dni(hidden_units=units) for units in (0, 5)]
        carry = jnp.ones((LANES, N), jnp.float32)
        return [model.predict(model.init(structure, key), carry) for model in models]

    for credit in found(jax.random.key(0)):
        assert credit.dtype == jnp.float32
        assert not np.any(credit)


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="hidden_units must be at least 0, got -1"):
        dni(hidden_units=-1)
