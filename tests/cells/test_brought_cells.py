"""Cells as users bring them, each against `jax.jacobian` of the user's own function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax._src.matrices import Banded
from kfrtrl_jax.linearization import make_linearizer
from tests.helpers.brought_cells import BROUGHT, N, linear_recurrent_unit, normal
from tests.helpers.jacobians import assert_linearization_is_the_jacobian, inputs
from tests.trajectories import BATCH_SIZE, INPUT_SIZE, influence_rows, push_all, run


@pytest.mark.parametrize("name", BROUGHT)
def test_linearization_of_a_brought_cell_is_its_jacobian(name):
    linearizer, _ = assert_linearization_is_the_jacobian(BROUGHT[name](), inputs())
    assert linearizer.structure.problems == ()


def test_diagonal_recurrences_are_exact_and_cost_no_matrix():
    cell = linear_recurrent_unit()
    trajectory = run(cell, 8)
    _, linearization = assert_linearization_is_the_jacobian(cell, inputs())
    assert all(isinstance(block, Banded) for block in linearization.jacobian.blocks)
    cotangents = jax.random.normal(jax.random.key(1), (3, BATCH_SIZE, 2 * N))
    kf, exact = (
        influence_rows(e, trajectory, push_all(e, trajectory, jax.random.key(2)), cotangents)
        for e in (estimators.kf_rtrl(), estimators.rtrl())
    )
    # Leaves in order: imaginary, nu, real, theta; those of the recurrence have no noise.
    ends = np.cumsum([INPUT_SIZE * N, N, INPUT_SIZE * N, N])
    theta = slice(ends[2], ends[3])
    np.testing.assert_allclose(kf[:, theta], exact[:, theta], atol=1e-12)


def test_dropout_with_its_key_in_the_carry():
    def step(params, carry, x):
        h, key = carry
        key, mask_key = jax.random.split(key)
        mask = jax.random.bernoulli(mask_key, 0.5, h.shape)
        h = jnp.tanh(jnp.concatenate([x, jnp.where(mask, h, 0)]) @ params["w"])
        return (h, key), h

    cell = cells.from_function(
        step,
        lambda key: normal(key, w=(INPUT_SIZE + N, N)),
        lambda: (jnp.zeros(N), jax.random.key(0)),
    )
    linearizer = make_linearizer(cell, inputs()[0], BATCH_SIZE)
    assert linearizer.structure.problems == ()
    params = cell.init(jax.random.key(1))
    carry = (jnp.ones((BATCH_SIZE, N)), jax.random.split(jax.random.key(2), BATCH_SIZE))
    linearization = linearizer.linearize(params, carry, inputs(), jnp.ones(BATCH_SIZE))
    for lane in range(BATCH_SIZE):

        def new_state(h, lane=lane):
            return step(params, (h, carry[1][lane]), inputs()[lane])[0][0]

        np.testing.assert_allclose(
            linearization.jacobian.dense()[lane],
            jax.jacobian(new_state)(carry[0][lane]),
            atol=1e-12,
        )
