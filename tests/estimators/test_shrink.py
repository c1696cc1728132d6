from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfrtrl_jax import credit, estimators
from kfrtrl_jax._src.learning import trees
from kfrtrl_jax.base import Batch, InfluenceEstimator, Site, Structure
from tests.helpers.interpreter import evaluated
from tests.helpers.learners import learner_of, segments
from tests.trajectories import SMALL_CELLS, sequence

# Sites of a true gradient with noise on each entry: without noise, with much, with nothing else.
SIGNAL, NOISE = np.asarray([1.0, 1.0, 0.0]), np.asarray([0.0, 2.0, 2.0])
SHAPE = (3, 4)
STRUCTURE = Structure(2, 4, tuple(Site(*SHAPE, label) for label in "abc"), jnp.dtype("float64"))


def given_gradients(signal, noise):
    """An estimator whose gradients are (signal + noise xi) c_00 in every entry."""

    def push(state, linearization, key):
        return signal + noise * jax.random.normal(key, (*SHAPE, len(signal)))

    return InfluenceEstimator(
        init=lambda structure: jnp.zeros((*SHAPE, len(signal))),
        push=push,
        pull=lambda state, c: tuple(state[..., site] * c[0, 0] for site in range(len(signal))),
    )


def test_the_factors_are_the_signals_share_of_each_site():
    copies = 4
    shrunk = estimators.shrink(given_gradients(SIGNAL, NOISE), copies, decay=0.999)
    cotangents = jnp.ones((2, 2, 4))

    @jax.jit
    def run(keys):
        def step(state, key):
            return shrunk.observe(shrunk.push(state, None, key), cotangents), None

        return jax.lax.scan(step, shrunk.init(STRUCTURE), keys)[0]

    state = run(jax.random.split(jax.random.key(0), 5000))
    factors = [shrunk.diagnostics(state)[f"shrinkage_{site}"] for site in range(3)]
    # Of the squared norm of the mean the noise is noise^2 / copies for each entry.
    half = 1 / (1 + 2.0**2 / copies)
    np.testing.assert_allclose(factors[:2], [1, half], atol=0.03)
    assert 0 <= factors[2] < 0.1
    plain = estimators.average(given_gradients(SIGNAL, NOISE), copies).pull(
        state.copies, cotangents[0]
    )
    for factor, got, mean in zip(factors, shrunk.pull(state, cotangents[0]), plain, strict=True):
        np.testing.assert_allclose(got, factor * mean, atol=1e-12)


def test_before_it_has_seen_a_gradient_and_after_an_infinite_one_nothing_changes():
    shrunk = estimators.shrink(given_gradients(SIGNAL, NOISE))
    state = shrunk.push(shrunk.init(STRUCTURE), None, jax.random.key(0))
    mean = estimators.average(given_gradients(SIGNAL, NOISE), 2).pull(
        state.copies, jnp.ones((2, 4))
    )
    for c in (0.0, jnp.inf):
        seen = shrunk.observe(state, jnp.full((1, 2, 4), c))
        np.testing.assert_array_equal(shrunk.pull(seen, jnp.ones((2, 4))), mean)


class Told(NamedTuple):
    """An estimator's state, and the sum of the gradients that it was told of."""

    inner: tuple
    total: tuple


def telling(estimator):
    """The estimator, which adds up the gradients of the cotangents that it observes."""

    def init(structure):
        nothing = tuple(jnp.zeros((s.input_size, s.output_size)) for s in structure.sites)
        return Told(estimator.init(structure), nothing)

    def observe(state, cotangents):
        for c in cotangents:
            state = state._replace(total=trees.add(state.total, estimator.pull(state.inner, c)))
        return state

    return InfluenceEstimator(
        init,
        lambda state, *xs: state._replace(inner=estimator.push(state.inner, *xs)),
        lambda state, c: estimator.pull(state.inner, c),
        observe=observe,
    )


@pytest.mark.parametrize(
    "form",
    [
        {"segment_length": 2, "update_every": 1},
        {"segment_length": 2, "update_every": 1, "window": 4},
        {"segment_length": 2, "credit": credit.dni(share=0.5)},
        {"immediate": "estimated"},
    ],
    ids=["updates in a segment", "a window", "a credit", "the papers' form"],
)
def test_a_learner_tells_its_estimator_of_every_gradient_that_it_pulls(form):
    """What the past adds to the gradients is what `truncated` lacks."""
    batches = segments(Batch(*sequence(6)), form.get("segment_length", 1))

    def summed(estimator):
        """The sum of all gradients by the cell's parameters, and what the estimator was told."""
        learner = learner_of(SMALL_CELLS["vanilla"], estimator, check=False, **form)
        start = learner.init(jax.random.key(0))

        def step(state, segment):
            gradient, state, _ = learner.gradient(state, segment)
            return state, gradient["cell"]

        state, gradients = jax.lax.scan(step, start, batches)
        sums = jax.tree.map(lambda g: jnp.sum(g.reshape(-1, *g.shape[-2:]), axis=0), gradients)
        told = getattr(state.influence, "total", None)
        if told is not None:
            told = learner.linearizer.gradient(start.parameters["cell"], told)
        return sums, told

    def run():
        whole, told = summed(telling(estimators.rtrl()))
        return whole["weights"] - summed(estimators.truncated())[0]["weights"], told["weights"]

    by_past, told = evaluated(run)
    np.testing.assert_allclose(told, by_past, atol=1e-12)
    assert np.linalg.norm(told) > 0.01


def test_combinators_pass_on_what_is_observed():
    counting = InfluenceEstimator(
        init=lambda structure: jnp.zeros(()),
        push=lambda state, *xs: state,
        pull=None,
        observe=lambda state, cotangents: state + len(cotangents),
    )
    made = [
        estimators.average(counting, 2),
        estimators.antithetic(counting),
        estimators.reset_every(5, counting),
        estimators.random_resets(0.5, counting),
        estimators.random_transport(counting, 1),
        estimators.mixture([counting, counting], [0.5, 0.5]),
        estimators.partition(lambda label: label == "a", counting, counting),
        estimators.tracked(counting, estimators.truncated()),
    ]
    for estimator in made:
        before = estimator.init(STRUCTURE)
        after = estimator.observe(before, jnp.zeros((3, 2, 4)))
        found = jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), after, before)
        assert {float(x.max()) for x in jax.tree.leaves(found)} - {0.0} == {3.0}


def test_it_learns():
    estimator = estimators.shrink(estimators.kf_rtrl())
    learner = learner_of(SMALL_CELLS["vanilla"], estimator, optax.adam(1e-2), check=False)
    inputs, _, _ = sequence(1000)
    # The target is whether the first input of the step before was positive.
    positive = (inputs[:, :, 0] > 0).astype(int)
    targets = jnp.concatenate([positive[:1], positive[:-1]])
    batches = segments(Batch(inputs, targets, jnp.zeros(targets.shape, bool)), 1)

    @jax.jit
    def run(key):
        state, metrics = jax.lax.scan(learner.step, learner.init(key), batches)
        return metrics.loss, estimator.diagnostics(state.influence)["shrinkage_0"]

    losses, factor = run(jax.random.key(0))
    assert losses[-100:].mean() < 0.6 * losses[:100].mean()
    assert 0 < factor < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"copies": 1}, "copies must be at least 2"), ({"decay": 1.0}, "decay must be in")],
)
def test_shrink_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        estimators.shrink(estimators.kf_rtrl(), **arguments)
