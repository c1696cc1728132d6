import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax._src.estimators.weights import Weights, weights_of
from kfrtrl_jax.base import InfluenceEstimator, Mask
from kfrtrl_jax.linearization import make_linearizer
from kfrtrl_jax.trajectories import gradients, push_all, trajectory
from tests.estimators import monte_carlo
from tests.helpers.nights import at_night
from tests.linearization.references import cell_of

INPUT_SIZE = 3
HEADS = cell_of(
    lambda p, h, x: (
        2 * (jnp.tanh(h @ (p["r"] * np.kron(np.eye(2), np.ones((2, 2)))) + x @ p["w"]),)
    ),
    4,
    r=(4, 4),
    w=(INPUT_SIZE, 4),
)
SPARSE = cells.vanilla(input_size=INPUT_SIZE, hidden_size=6, sparsity=0.7)
rng = np.random.default_rng(0)
MASKS = {
    "heads": np.concatenate([np.kron(np.eye(2), np.ones((2, 3))), np.ones((1, 6))]),
    "sparse": rng.random((6, 4)) < 0.4,
    "one whole column": np.asarray([[1, 1, 0], [1, 0, 0], [1, 0, 1]]),
    "nothing": np.zeros((3, 2)),
}


def masked(name):
    mask = MASKS[name].astype(bool)
    return mask, Weights(*mask.shape, Mask(mask))


@pytest.mark.parametrize("name", MASKS)
def test_sums_and_products_are_those_of_the_existing_weights(name):
    mask, weights = masked(name)
    m, g = mask.shape
    inputs, parts = jnp.asarray(rng.normal(size=(2, 3, m))), jnp.asarray(rng.normal(size=(2, 3, g)))
    whole = jnp.einsum("btm,btg->bmg", inputs, parts)
    packed = weights.outer_sum(inputs, parts)
    assert packed.shape == (2, *weights.shape)
    back = weights.existing(jax.vmap(weights.everywhere)(packed))
    np.testing.assert_allclose(back, jnp.where(mask, whole, 0), atol=1e-12)
    values = jnp.asarray(rng.normal(size=(2, 2, *weights.shape)))
    spread = jax.vmap(jax.vmap(weights.everywhere))(values)
    np.testing.assert_allclose(
        weights.times_inputs(inputs, values),
        jnp.einsum("btm,bkmg->btgk", inputs, spread),
        atol=1e-12,
    )


def test_no_more_is_kept_than_the_fullest_column_has():
    shapes = {name: masked(name)[1].shape for name in MASKS}
    assert shapes["heads"] == (3, 6)
    assert shapes["sparse"] == (MASKS["sparse"].sum(axis=0).max(), 4)
    assert shapes["one whole column"] == (3, 3)
    assert shapes["nothing"] == (0, 2)
    assert Weights(3, 2).shape == (3, 2)


@pytest.mark.parametrize(("cell", "left"), [(HEADS, 0.75), (SPARSE, 0.9)])
def test_rtrl_without_the_zeros_is_rtrl(cell, left):
    """Against RTRL of a structure that knows of no zeros."""
    along = trajectory(cell, input_size=INPUT_SIZE, batch_size=2, steps=5, seed=0)
    dense = along.structure._replace(
        sites=tuple(site._replace(weights_mask=None) for site in along.structure.sites)
    )
    cotangents = jax.random.normal(jax.random.key(0), (3, 2, along.structure.state_size))
    found, sizes = [], []
    for structure in (along.structure, dense):
        state = push_all(estimators.rtrl(), along._replace(structure=structure), jax.random.key(0))
        found.append(gradients(estimators.rtrl(), state, cotangents, along.structure))
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(state)))
    np.testing.assert_allclose(*found, atol=1e-12)
    assert sizes[0] <= left * sizes[1]


@pytest.mark.parametrize(
    ("estimator", "cell"),
    [
        (estimators.uoro(), HEADS),
        (estimators.kf_rtrl(), SPARSE),
        (estimators.ok(2), SPARSE),
        *at_night(
            (estimators.nobacktrack(), HEADS),
            (estimators.forward_gradient(4), HEADS),
            (estimators.uoro("pre_activation"), SPARSE),
        ),
    ],
)
def test_the_mean_over_draws_is_the_exact_influence(estimator, cell):
    z = monte_carlo.deviations(estimator, cell, draws=1024, steps=5)
    assert np.max(np.abs(z)) < 4


def noisy_where_nothing_is(mask):
    """RTRL, but for noise at weights that do not exist."""
    exact = estimators.rtrl()

    def pull(state, cotangent):
        (gradient,) = exact.pull(state[0], cotangent)
        return (jnp.where(mask, gradient, jax.random.normal(state[1], gradient.shape)),)

    return InfluenceEstimator(
        lambda structure: (exact.init(structure), jax.random.key(0)),
        lambda state, linearization, key: (exact.push(state[0], linearization, key), key),
        pull,
    )


def test_what_is_pulled_at_absent_weights_is_neither_error_nor_noise():
    along = trajectory(SPARSE, input_size=INPUT_SIZE, batch_size=2, steps=4, seed=0)
    noisy = noisy_where_nothing_is(along.structure.sites[0].weights_mask.array)
    cotangents = jnp.ones((1, 2, along.structure.state_size))

    def diagnostics(estimator):
        state = push_all(estimator, along, jax.random.key(1))
        return estimator.diagnostics(estimator.observe(state, cotangents))

    tracked = diagnostics(estimators.tracked(noisy, estimators.rtrl()))
    np.testing.assert_allclose(tracked["cosine"], 1)
    np.testing.assert_allclose(tracked["relative_error"], 0, atol=1e-12)
    np.testing.assert_allclose(diagnostics(estimators.shrink(noisy, copies=2))["shrinkage_0"], 1)


def test_weights_are_static():
    one, other = (
        weights_of(make_linearizer(SPARSE, jnp.zeros(INPUT_SIZE), 1).structure) for _ in "ab"
    )
    assert jax.tree.leaves(one) == []
    assert one == other
    assert hash(one) == hash(other)
