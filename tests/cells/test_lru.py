import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax.linearization import make_linearizer
from tests.cells.learning import losses_on_the_copy_task
from tests.trajectories import INPUT_SIZE, push_all, run

LRU = cells.lru(input_size=INPUT_SIZE, hidden_size=4)


def test_its_jacobian_is_a_two_by_two_block_for_each_unit():
    structure = make_linearizer(LRU, jnp.zeros(INPUT_SIZE), 1).structure
    assert all(site.columns is not None for site in structure.sites)
    np.testing.assert_array_equal(
        structure.jacobian_mask.array, np.kron(np.ones((2, 2)), np.eye(4))
    )


def test_rtrl_is_backpropagation_through_time():
    trajectory = run(LRU, 7)
    cotangent = jax.random.normal(jax.random.key(2), (2, 8))

    def projection(params):
        def step(carry, xs):
            x, keep = xs
            carry = jax.tree.map(lambda leaf: keep[:, None] * leaf, carry)
            return jax.vmap(LRU.step, in_axes=(None, 0, 0))(params, carry, x)

        first = jax.tree.map(lambda leaf: leaf[0], trajectory.carries)
        _, outputs = jax.lax.scan(step, first, (trajectory.inputs, trajectory.keep))
        return jnp.sum(cotangent * outputs[-1])

    @jax.jit
    def gradients(params):
        estimator = estimators.rtrl()
        state = push_all(estimator, trajectory, jax.random.key(0))
        pulled = estimator.pull(state, cotangent)
        return trajectory.linearizer.gradient(params, pulled), jax.grad(projection)(params)

    online, backward = gradients(trajectory.params)
    chex.assert_trees_all_close(online, backward, rtol=1e-7, atol=1e-11)


def test_a_step_is_complex_arithmetic():
    params = LRU.init(jax.random.key(1))
    p = {name: np.asarray(value) for name, value in params.items()}
    x, z = np.arange(1.0, 4), np.arange(4) + 1j * np.arange(4)[::-1]
    eigenvalues = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))
    new = eigenvalues * z + np.exp(p["log_gamma"]) * (x @ (p["real"] + 1j * p["imaginary"]))
    (real, imaginary), output = LRU.step(params, (jnp.asarray(z.real), jnp.asarray(z.imag)), x)
    np.testing.assert_allclose(real + 1j * imaginary, new, rtol=1e-12)
    np.testing.assert_allclose(output, np.concatenate([new.real, new.imag]), rtol=1e-12)


def test_eigenvalues_start_in_the_ring_and_the_state_at_unit_variance():
    cell = cells.lru(input_size=2, hidden_size=4000, min_radius=0.5, max_radius=0.9, max_phase=0.3)
    params = cell.init(jax.random.key(0))
    size, phase = np.exp(-np.exp(params["nu"])), np.exp(params["theta"])
    assert 0.5 <= size.min() < 0.51 < 0.89 < size.max() <= 0.9
    assert 0 <= phase.min() < 0.01 < 0.29 < phase.max() <= 0.3
    assert np.mean(size**2) == pytest.approx((0.25 + 0.81) / 2, abs=0.01)
    np.testing.assert_allclose(np.exp(2 * params["log_gamma"]), 1 - size**2, rtol=1e-10)
    default = cells.lru(input_size=2, hidden_size=4000).init(jax.random.key(0))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(default))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"min_radius": 0.9, "max_radius": 0.5}, "the radii must be"),
        ({"max_radius": 1.1}, "the radii must be"),
        ({"max_phase": 0.0}, "max_phase must be more than 0"),
    ],
)
def test_rings_that_are_none_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        cells.lru(input_size=2, hidden_size=3, **kwargs)


def test_it_learns_the_copy_task_with_exact_gradients_of_the_past():
    with jax.enable_x64(False):
        cell = cells.lru(input_size=4, hidden_size=16)
        losses = losses_on_the_copy_task(cell, estimators.diagonal_rtrl())
    assert losses[-100:].mean() < 0.5 * losses[:20].mean()
