import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from kfrtrl_jax._src.matrices import Banded, BlockColumns, Dense, Index, single
from kfrtrl_jax.base import Linearization, Site, SiteJacobian, Structure
from tests.estimators import stacked

N, INPUTS, LANES = 4, 2, 3
DIAGONAL = Index(np.arange(N)[None])
STRUCTURE = Structure(LANES, N, (Site(INPUTS, N, "w", columns=DIAGONAL),), jnp.float64)


def linear(jacobian, inputs):
    """s' = J s + W^T x: one step for J: [n, n] and x: [B, inputs]."""
    site = SiteJacobian(
        inputs[:, None], single(Banded(jnp.ones((LANES, 1, N), inputs.dtype), DIAGONAL, N))
    )
    columns = BlockColumns((Dense(jnp.broadcast_to(jacobian, (LANES, N, N))),))
    return Linearization(columns, (site,), columns, jnp.ones(LANES))


def push_all(estimator, state, jacobian, count):
    """The state after steps of one linear network on random inputs."""
    keys = jax.random.split(jax.random.key(1), count)
    inputs = jax.random.normal(jax.random.key(2), (count, LANES, INPUTS), jacobian.dtype)

    def step(state, xs):
        key, x = xs
        return estimator.push(state, linear(jacobian, x), key), None

    return jax.lax.scan(step, state, (keys, inputs))[0]


def influence_of(estimator, state):
    cotangents = jnp.eye(LANES * N).reshape(-1, LANES, N)
    return jax.vmap(lambda c: estimator.pull(state, c)[0])(cotangents)


def test_kernl_learns_the_kernel_of_a_diagonal_network():
    decay = np.asarray([0.9, 0.6, 0.3, 0.05])
    estimator = estimators.kernl(learning_rate=0.5, decay_learning_rate=0.5)
    kernel = np.eye(N) + 0.3 * np.random.default_rng(0).normal(size=(N, N))

    @jax.jit
    def learned():
        first = estimator.init(STRUCTURE)._replace(kernel=jnp.asarray(kernel))
        state = push_all(estimator, first, jnp.diag(decay), 2000)
        return state, estimator.diagnostics(state)["kernel_error"]

    state, error = learned()
    np.testing.assert_allclose(state.kernel, np.eye(N), atol=1e-5)
    np.testing.assert_allclose(state.decay, decay, atol=1e-5)
    assert error < 1e-5


def test_learned_decays_and_a_learned_kernel_come_nearer_to_the_influence():
    """In a network whose units see each other; learning rates may be traced, as in a sweep."""
    coupling = 0.1 * np.random.default_rng(0).normal(size=(N, N))
    jacobian = jnp.asarray(np.diag([0.7, 0.5, 0.3, 0.1]) + coupling)

    @jax.jit
    def errors(learning_rates, decay_learning_rates):
        exact = push_all(estimators.rtrl(), estimators.rtrl().init(STRUCTURE), jacobian, 1000)
        wanted = influence_of(estimators.rtrl(), exact)

        def error(*rates):
            estimator = estimators.kernl(*rates)
            state = push_all(estimator, estimator.init(STRUCTURE), jacobian, 1000)
            return jnp.linalg.norm(influence_of(estimator, state) - wanted)

        found = jax.vmap(error)(learning_rates, decay_learning_rates)
        return found / jnp.linalg.norm(wanted)

    both, decays, neither = errors(jnp.asarray([0.1, 0, 0]), jnp.asarray([0.1, 0.1, 0]))
    assert both < 0.8 * decays
    assert decays < 0.5 * neither


def test_a_fixed_kernel_of_the_true_leak_is_rflo():
    """Without learning, traces of every unit's own leak; lane 1 starts anew in the middle."""
    along = stacked.along("recurrent_highway")
    steps = along.linearizations
    starts = np.all(np.asarray(jax.vmap(lambda j: j.dense())(steps.jacobian)) == 0, axis=(2, 3))
    assert np.sum(starts) == 3
    leak = Banded(np.where(starts, 0, 0.7)[:, :, None, None] * np.ones(N), DIAGONAL, N)
    leaky = along._replace(linearizations=steps._replace(leak=BlockColumns((leak,))))
    keys = jax.random.split(jax.random.key(0), 8)
    got, wanted = jax.jit(
        lambda: [
            stacked.influence(estimator, leaky, keys)
            for estimator in (estimators.kernl(0, 0, decay=0.7), estimators.rflo())
        ]
    )()
    np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_a_lane_that_starts_anew_starts_its_perturbation_and_traces_anew():
    estimator = estimators.kernl()
    push = jax.jit(estimator.push)
    inputs = np.random.default_rng(0).normal(size=(3, LANES, INPUTS))
    state = estimator.init(STRUCTURE)
    for t, key in enumerate(jax.random.split(jax.random.key(0), 3)):
        last = linear(0.9 * jnp.eye(N), jnp.asarray(inputs[t]))
        if t == 2:
            last = last.scaled(jnp.asarray([1.0, 0.0, 1.0]))
        state = push(state, last, key)
    immediate = np.broadcast_to(inputs[2][:, :, None, None], (LANES, INPUTS, 1, N))
    traces = state.trace.influence[0].values
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state))
    np.testing.assert_array_equal(traces[1], immediate[1])
    np.testing.assert_array_equal(state.perturbation[1], state.filtered_noise[1])
    assert jnp.all(state.sensitivity[1] == 0)
    assert jnp.all(traces[0] != immediate[0])
    assert jnp.all(state.perturbation[0] != state.filtered_noise[0])
    assert jnp.all(state.sensitivity[0] != 0)


def test_perturbations_of_an_unstable_network_stay_finite_in_float32():
    estimator = estimators.kernl(1.0, 1.0)

    @jax.jit
    def pushed():
        first = estimator.init(STRUCTURE._replace(dtype=jnp.float32))
        return push_all(estimator, first, 3 * jnp.eye(N, dtype=jnp.float32), 500)

    state = pushed()
    assert all(x.dtype == jnp.float32 and jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state))
    assert jnp.linalg.norm(state.kernel) < 1000
    assert jnp.all((state.decay >= 0) & (state.decay < 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 1.0}, "decay must be in"),
        ({"learning_rate": -0.1}, "learning_rate must be at least 0"),
        ({"decay_learning_rate": float("nan")}, "decay_learning_rate must be at least 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        estimators.kernl(**arguments)
