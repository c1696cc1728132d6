import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from kfrtrl_jax._src.composition import compose
from kfrtrl_jax.base import InfluenceEstimator
from tests.estimators import stacked

# What the steps look like to an estimator: J, and the D of the first site.
SEEN = InfluenceEstimator(
    init=lambda structure: (),
    push=lambda state, steps, key: (steps.jacobian.dense(), steps.sites[0].derivatives.dense()),
    pull=None,
)
DRAWS = 2048


def seen(steps, paths):
    """Their J and D as they are, and with random paths: rescaled and not, [draws, ...]."""

    @jax.jit
    def run(keys):
        linearization = compose(steps.linearizations)
        rescaled, smaller = (
            estimators.random_transport(SEEN, paths, rescaled) for rescaled in (True, False)
        )
        return (
            SEEN.push((), linearization, None),
            jax.vmap(lambda key: rescaled.push((), linearization, key))(keys),
            jax.vmap(lambda key: smaller.push((), linearization, key))(keys),
        )

    return jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(0), DRAWS)))


def in_standard_errors(drawn, exact):
    """The largest of a few random projections of the deviation of the mean."""
    directions = np.random.default_rng(0).normal(size=(6, exact.size))
    projected = (drawn - exact).reshape(len(drawn), -1) @ directions.T
    return np.max(np.abs(projected.mean(axis=0)) / projected.std(axis=0)) * np.sqrt(len(drawn))


def test_rescaled_paths_are_a_given_number_in_each_row_and_leave_the_mean_of_many_steps():
    steps = stacked.part(stacked.along("gru"), slice(1, 4))
    exact, drawn, smaller = seen(steps, paths=2)
    assert max(map(in_standard_errors, drawn, exact)) < 4
    assert in_standard_errors(smaller[0], exact[0]) > 50
    # D of the last step has no J behind it.
    assert np.all(drawn[1][:, :, -1] == exact[1][:, -1])

    one = stacked.part(steps, slice(0, 1))
    (exact, _), (drawn, _), _ = seen(one, paths=1)
    leak = np.asarray(jax.jit(one.linearizations.leak.dense)())[0]
    kept = np.abs(drawn - leak) > 1e-12
    assert np.all(kept.sum(axis=-1) == 1)
    np.testing.assert_allclose(
        drawn[kept], np.broadcast_to(leak + 4 * (exact - leak), kept.shape)[kept]
    )
    # Every entry of every lane has its turn, and the choices of rows and lanes differ.
    assert np.all(np.abs(kept.mean(axis=0) - 1 / 4) < 4 * np.sqrt(3 / 16 / DRAWS))
    assert np.mean(np.all(kept == kept[:, :1, :1], axis=(1, 2, 3))) < 0.01


def test_all_paths_are_rtrl_and_none_the_leak_alone():
    steps = stacked.part(stacked.along("gru"), slice(0, 6))
    on_leak = steps._replace(
        linearizations=steps.linearizations._replace(jacobian=steps.linearizations.leak)
    )

    @jax.jit
    def run(keys):
        some, none = (
            estimators.random_transport(estimators.rtrl(), paths, rescaled=False)
            for paths in (4, 0)
        )
        return [
            stacked.influence(estimator, given, keys)
            for estimator, given in (
                (some, steps),
                (estimators.rtrl(), steps),
                (none, steps),
                (estimators.rtrl(), on_leak),
            )
        ]

    everything, exact, nothing, leak = run(jax.random.split(jax.random.key(0), 6))
    np.testing.assert_allclose(everything, exact, atol=1e-12)
    np.testing.assert_allclose(nothing, leak, atol=1e-12)
    assert jnp.linalg.norm(exact - leak) > 0.1 * jnp.linalg.norm(exact)


@pytest.mark.parametrize(("paths", "rescaled"), [(0, True), (-1, False)])
def test_random_transport_refuses_too_few_paths(paths, rescaled):
    with pytest.raises(ValueError, match="paths must be at least"):
        estimators.random_transport(estimators.rtrl(), paths, rescaled)
