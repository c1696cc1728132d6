import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from kfrtrl_jax.base import Cell
from kfrtrl_jax.errors import ConfigError, UnsupportedCellError
from tests.trajectories import SMALL_CELLS, influence_rows, push_all, run

STEPS = 6


def is_gates(label):
    return "gates" in label


@pytest.fixture(scope="module")
def gru():
    return run(SMALL_CELLS["gru"], STEPS)


def site_gradients(estimator, trajectory, key=0):
    @jax.jit
    def gradients():
        cotangent = jax.random.normal(jax.random.key(3), (2, 4))
        return estimator.pull(push_all(estimator, trajectory, jax.random.key(key)), cotangent)

    return gradients()


def tracked_figures(estimator, trajectory):
    both = estimators.tracked(estimator, estimators.rtrl())
    return jax.jit(lambda: both.diagnostics(push_all(both, trajectory, jax.random.key(0))))()


def test_lanes_pulled_apart_are_those_of_one_lane_each(gru):
    @jax.jit
    def pulled():
        state = push_all(estimators.kf_rtrl(), gru, jax.random.key(0))
        cotangent = jax.random.normal(jax.random.key(3), (2, 4))
        first = jnp.where(jnp.arange(2)[:, None] == 0, cotangent, 0)
        whole, alone = (estimators.kf_rtrl().pull(state, c) for c in (cotangent, first))
        return estimators.pull_lanes(estimators.kf_rtrl(), state, cotangent), whole, alone

    for lanes, whole, alone in zip(*pulled(), strict=True):
        np.testing.assert_allclose(lanes.sum(axis=0), whole, atol=1e-13)
        np.testing.assert_allclose(lanes[0], alone, atol=1e-13)


def test_tracking_does_not_change_the_estimator(gru):
    for a, b in zip(
        site_gradients(estimators.tracked(estimators.uoro(), estimators.rtrl()), gru),
        site_gradients(estimators.uoro(), gru),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_tracked_figures_of_known_estimates(gru):
    exact = tracked_figures(estimators.rtrl(), gru)
    assert exact["cosine"] == pytest.approx(1)
    assert exact["relative_error"] == pytest.approx(0)
    rtrl = estimators.rtrl()
    half = rtrl._replace(pull=lambda s, c: tuple(-0.5 * g for g in rtrl.pull(s, c)))
    opposite = tracked_figures(half, gru)
    assert opposite["cosine"] == pytest.approx(-1)
    assert opposite["relative_error"] == pytest.approx(1.5)
    nothing = tracked_figures(estimators.truncated(), gru)
    assert nothing["cosine"] == 0
    assert nothing["relative_error"] == pytest.approx(1)


def test_a_reference_that_learns_from_cotangents_sees_them(gru):
    reference = estimators.shrink(estimators.kf_rtrl(), copies=2)
    both = estimators.tracked(estimators.uoro(), reference)

    @jax.jit
    def observed():
        state = push_all(both, gru, jax.random.key(0))
        cotangents = jax.random.normal(jax.random.key(3), (1, 2, 4))
        alone = reference.observe(state.reference, cotangents)
        return both.observe(state, cotangents).reference, alone, state.reference

    after, alone, before = observed()
    jax.tree.map(np.testing.assert_array_equal, after.power, alone.power)
    assert np.any(after.power != before.power)


def test_tracked_keeps_the_estimators_own_diagnostics(gru):
    figures = tracked_figures(estimators.kf_rtrl(), gru)
    assert {"input_factor_norm_0", "cosine", "relative_error"} <= set(figures)
    assert jnp.abs(figures["cosine"]) <= 1


def test_partition_of_exact_estimators_is_exact(gru):
    both = estimators.partition(is_gates, estimators.rtrl(), estimators.ok(10))
    cotangents = jax.random.normal(jax.random.key(3), (2, 2, 4))
    rows = [
        influence_rows(e, gru, push_all(e, gru, jax.random.key(0)), cotangents)
        for e in (both, estimators.rtrl())
    ]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-10)


def test_partition_gives_each_site_to_its_estimator(gru):
    both = estimators.partition(is_gates, estimators.snap(), estimators.truncated())
    snap = site_gradients(estimators.snap(), gru)
    labels = [site.label for site in gru.linearizer.structure.sites]
    for label, got, expected in zip(labels, site_gradients(both, gru), snap, strict=True):
        np.testing.assert_allclose(got, expected * is_gates(label), atol=1e-12)


def test_partition_names_the_labels_where_all_go_to_one(gru):
    for predicate, word in [(lambda label: False, "none"), (lambda label: True, "all")]:
        estimator = estimators.partition(predicate, estimators.rtrl(), estimators.uoro())
        with pytest.raises(ConfigError, match=f"holds of {word} of the sites 'gates'"):
            estimator.init(gru.linearizer.structure)


def opaque():
    """h' = max(v, tanh(W^T [x; h])): v is in no product or sum."""

    def step(params, h, x):
        h = jnp.maximum(params["v"], jnp.tanh(jnp.concatenate([x, h]) @ params["weights"]))
        return h, h

    def init(key):
        return {"v": jnp.linspace(-1, 0.5, 4), "weights": jax.random.normal(key, (7, 4))}

    return Cell(init, lambda: jnp.zeros(4), step)


def test_partition_takes_a_cell_whose_opaque_parameter_goes_to_an_estimator_that_takes_it():
    trajectory = run(opaque(), STEPS)
    structure = trajectory.linearizer.structure
    (problem,) = structure.problems
    assert [site.label for site in structure.sites if site.problem == problem] == ["v"]
    with pytest.raises(UnsupportedCellError, match="max"):
        estimators.kf_rtrl().init(structure)
    weights_by_kf = estimators.partition(
        lambda label: label == "weights", estimators.kf_rtrl(), estimators.rtrl()
    )
    labels = [site.label for site in structure.sites]
    exact = site_gradients(estimators.rtrl(), trajectory)
    for label, got, want in zip(
        labels, site_gradients(weights_by_kf, trajectory), exact, strict=True
    ):
        assert np.allclose(got, want, atol=1e-12) == (label == "v")
    weights_by_rtrl = estimators.partition(
        lambda label: label == "weights", estimators.rtrl(), estimators.kf_rtrl()
    )
    with pytest.raises(UnsupportedCellError, match="max"):
        weights_by_rtrl.init(structure)


def test_averages_of_partitions_of_tracked_estimators_compose(gru):
    estimator = estimators.average(
        estimators.partition(
            is_gates,
            estimators.tracked(estimators.kf_rtrl(), estimators.rtrl()),
            estimators.uoro(),
        ),
        2,
    )
    state = push_all(estimator, gru, jax.random.key(0))
    assert jnp.isfinite(estimator.diagnostics(state)["chosen/cosine"])
