import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.linearization import make_linearizer
from tests.estimators import stacked


def draws_of(estimator, steps, keys):
    """All of G for every draw with these keys, [draws, T]."""
    return jax.jit(jax.vmap(lambda k: stacked.influence(estimator, steps, k)))(keys)


def exact(steps):
    return jax.jit(lambda: stacked.exact(steps))()


def random_signs(steps, draws=4096):
    """For `stacked.patch_signs`."""
    bits = np.random.default_rng(0).integers(0, 2, (draws, stacked.length(steps), 64))
    return 1.0 - 2.0 * bits


def assert_exact_whatever_the_signs(estimator, steps):
    drawn = draws_of(estimator, steps, random_signs(steps, draws=8))
    np.testing.assert_allclose(drawn, np.broadcast_to(exact(steps), drawn.shape), atol=1e-12)


def assert_unbiased_with_the_noise_of_kf_rtrl_times(factor, estimator):
    """At the most; and that equal signs would make a bias."""
    steps = stacked.along("recurrent_highway")
    signs = random_signs(steps)
    ((_, alone),) = stacked.sample(estimators.kf_rtrl(), steps, signs)
    (z, noise), (without, _) = stacked.sample(estimator, steps, signs, np.ones_like(signs))
    assert z < 4
    assert noise < factor * alone
    assert without > 100


def test_average_of_exact_copies_is_exact():
    steps = stacked.along("recurrent_highway")
    keys = jax.random.split(jax.random.key(0), (1, 8))
    averaged = draws_of(estimators.average(estimators.rtrl(), 3), steps, keys)[0]
    np.testing.assert_allclose(averaged, exact(steps), atol=1e-12)


def test_average_divides_the_noise_by_the_number_of_copies():
    steps = stacked.along("recurrent_highway")
    keys = jax.random.split(jax.random.key(0), (4096, 8))
    noises = [
        stacked.sample(estimator, steps, keys)[0][1]
        for estimator in (estimators.kf_rtrl(), estimators.average(estimators.kf_rtrl(), 4))
    ]
    assert noises[0] / noises[1] == pytest.approx(4, rel=0.15)


def test_reset_every_forgets_all_but_the_steps_since():
    steps = stacked.part(stacked.along("recurrent_highway"), slice(0, 6))
    # Six pushes with period 4 reset at pushes 0 and 4: what is left is the last two steps.
    keys = jax.random.split(jax.random.key(0), (1, 6))
    kept = draws_of(estimators.reset_every(4, estimators.rtrl()), steps, keys)[0]
    np.testing.assert_allclose(kept, exact(stacked.part(steps, slice(4, 6))), atol=1e-12)


@pytest.mark.parametrize("copies", [0, -1])
def test_average_refuses_no_copies(copies):
    with pytest.raises(ValueError, match="copies must be at least 1"):
        estimators.average(estimators.rtrl(), copies)


def test_reset_every_refuses_period_zero():
    with pytest.raises(ValueError, match="period must be at least 1"):
        estimators.reset_every(0, estimators.rtrl())


def test_random_resets_scale_what_they_keep_and_spare_no_lane():
    """After two steps G is I_2 + k J_2 I_1, for k = 0 or 1 / (1 - p) in each lane by itself."""
    probability, steps = 0.3, stacked.part(stacked.along("recurrent_highway"), slice(1, 3))
    keys = jax.random.split(jax.random.key(0), (4096, 2))
    drawn = draws_of(estimators.random_resets(probability, estimators.rtrl()), steps, keys)
    drawn = np.asarray(drawn).reshape(4096, 2, -1)
    latest, both = (
        np.asarray(exact(stacked.part(steps, slice(start, 2)))).reshape(2, -1) for start in (1, 0)
    )
    k = np.sum((drawn - latest) * (both - latest), axis=-1) / np.sum((both - latest) ** 2, axis=-1)
    np.testing.assert_allclose(drawn, latest + k[:, :, None] * (both - latest), atol=1e-12)
    kept = k > 0.5
    np.testing.assert_allclose(k, kept / (1 - probability), atol=1e-9)
    together = (1 - probability) ** np.asarray([1, 1, 2])
    found = np.asarray([*kept.mean(axis=0), np.mean(kept[:, 0] & kept[:, 1])])
    assert np.max(np.abs(found - together)) < 4 * np.sqrt(0.25 / 4096)


def test_random_resets_are_unbiased():
    steps = stacked.along("recurrent_highway")
    keys = jax.random.split(jax.random.key(1), (4096, 8))
    (z, noise), *_ = stacked.sample(estimators.random_resets(0.2, estimators.rtrl()), steps, keys)
    assert z < 4
    assert noise > 0.01


@pytest.mark.parametrize("probability", [-0.1, 1.0, float("nan")])
def test_random_resets_refuse_what_is_no_probability(probability):
    with pytest.raises(ValueError, match="probability must be in"):
        estimators.random_resets(probability, estimators.rtrl())


def test_a_mixture_is_the_weighted_sum_of_independent_estimates():
    steps = stacked.along("recurrent_highway")
    kinds = (estimators.rtrl(), estimators.kf_rtrl(), estimators.kf_rtrl(), estimators.truncated())
    mixed = estimators.mixture(kinds, (2.0, -0.5, 0.25, 3.0))
    keys = jax.random.split(jax.random.key(0), 8)

    @jax.jit
    def found():
        state, _ = stacked.states(mixed, steps, keys)
        cotangent = jnp.ones((2, 4))
        parts = [kind.pull(one, cotangent)[0] for kind, one in zip(kinds, state, strict=True)]
        return mixed.pull(state, cotangent)[0], parts, mixed.diagnostics(state)

    whole, (exact, first, second, none), named = found()
    np.testing.assert_allclose(whole, 2 * exact - 0.5 * first + 0.25 * second, atol=1e-12)
    assert jnp.all(none == 0)
    assert jnp.linalg.norm(first - second) > 0.1 * jnp.linalg.norm(exact)
    assert {"1/input_factor_norm_0", "2/input_factor_norm_0"} <= set(named)


@pytest.mark.parametrize(
    ("count", "weights", "message"),
    [
        (0, (), "at least one, got 0 estimators and 0 weights"),
        (2, (1.0,), "got 2 estimators and 1 weights"),
        (1, (float("inf"),), "weights must be finite"),
    ],
)
def test_a_mixture_refuses_weights_that_do_not_fit(count, weights, message):
    with pytest.raises(ValueError, match=message):
        estimators.mixture([estimators.rtrl()] * count, weights)


def test_a_control_variate_takes_off_all_noise_where_the_leak_is_all_of_j(monkeypatch):
    stacked.patch_signs(("common",), monkeypatch)
    steps = stacked.along("recurrent_highway")
    steps = steps._replace(
        linearizations=steps.linearizations._replace(jacobian=steps.linearizations.leak)
    )
    assert_exact_whatever_the_signs(estimators.control_variate(estimators.kf_rtrl()), steps)


def test_a_control_variate_is_unbiased_and_of_less_noise(monkeypatch):
    stacked.patch_signs(("common",), monkeypatch)
    estimator = estimators.control_variate(estimators.kf_rtrl(), coefficient=0.8)
    assert_unbiased_with_the_noise_of_kf_rtrl_times(0.6, estimator)


def test_a_control_variate_needs_traces_local_to_the_units():
    structure = stacked.dense(stacked.along("recurrent_highway")).structure
    with pytest.raises(UnsupportedCellError, match="local to each unit"):
        estimators.control_variate(estimators.kf_rtrl()).init(structure)
    with pytest.raises(ValueError, match="coefficient must be finite"):
        estimators.control_variate(estimators.kf_rtrl(), float("nan"))


def test_antithetic_copies_are_exact_as_long_as_their_signs_are_orthogonal(monkeypatch):
    stacked.patch_signs(("common",), monkeypatch)
    steps = stacked.part(stacked.along("recurrent_highway"), slice(0, 2))
    assert_exact_whatever_the_signs(estimators.antithetic(estimators.kf_rtrl()), steps)


def test_antithetic_copies_are_unbiased_and_of_less_noise_than_independent_ones(monkeypatch):
    stacked.patch_signs(("common",), monkeypatch)
    estimator = estimators.antithetic(estimators.kf_rtrl(), copies=4)
    assert_unbiased_with_the_noise_of_kf_rtrl_times(0.6 / 4, estimator)


@pytest.mark.parametrize("copies", [0, 3, -2])
def test_antithetic_refuses_what_is_no_power_of_two(copies):
    with pytest.raises(ValueError, match="copies must be a power of two"):
        estimators.antithetic(estimators.kf_rtrl(), copies)


def test_a_control_variate_refuses_a_leak_that_its_trace_does_not_follow():
    """The spikes of the step before drive the adaptation, which no pre-activation reaches by itself."""
    lif = cells.lif(input_size=3, hidden_size=4)

    def step(params, carry, x):
        state, adaptation = carry
        new, z = lif.step(params, state, x)
        return (new, 0.9 * adaptation + state[1]), z - adaptation

    cell = cells.from_function(step, lif.init, (lif.initial_carry(), jnp.zeros(4)))
    structure = make_linearizer(cell, jnp.zeros(3), 2).structure
    with pytest.raises(UnsupportedCellError, match="e_prop"):
        estimators.control_variate(estimators.kf_rtrl()).init(structure)
