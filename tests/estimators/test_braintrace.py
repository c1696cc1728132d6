"""Estimators against BrainTrace's, written by others from other papers, where both promise the same.

BrainTrace's gradient at a time step is the loss's by the new state times the updated trace; ours is
`pull` after `push`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax.base import InfluenceEstimator
from kfrtrl_jax.linearization import make_linearizer

brainstate = pytest.importorskip("brainstate", reason="needs the peers extra: brainstate")
braintrace = pytest.importorskip("braintrace", reason="needs the peers extra: braintrace")

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, INPUTS, UNITS = 5, 3, 4


class LeakyTanh(brainstate.nn.Module):
    """h' = leak h + (1 - leak) tanh(W^T [x; h])."""

    def __init__(self, weights, leak):
        super().__init__()
        self.leak = leak
        self.w = brainstate.ParamState(weights)

    def init_state(self, batch_size=None, **kwargs):
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, UNITS), jnp.float32))

    def update(self, x):
        xh = jnp.concatenate([x, self.h.value], axis=-1)
        new = jnp.tanh(braintrace.matmul(xh, self.w.value))
        self.h.value = new if self.leak == 0 else self.leak * self.h.value + (1 - self.leak) * new
        return self.h.value


def step_with(leak: float) -> Any:
    """The same for one lane."""

    def step(weights, h, x):
        new = jnp.tanh(jnp.concatenate([x, h]) @ weights)
        h = new if leak == 0 else leak * h + (1 - leak) * new
        return h, h

    return step


LEAKS = {"tanh": 0.0, "leaky tanh": 0.7}


def problem(batch: int) -> tuple[Any, Any, Any]:
    keys = jax.random.split(jax.random.key(3), 3)
    weights = 0.7 * jax.random.normal(keys[0], (INPUTS + UNITS, UNITS), jnp.float32)
    xs = jax.random.normal(keys[1], (STEPS, batch, INPUTS), jnp.float32)
    return weights, xs, jax.random.normal(keys[2], (STEPS, batch, UNITS), jnp.float32)


def theirs(model: str, algorithm: Any, batch: int, **options: Any) -> np.ndarray:
    """The sum over time steps of the gradient of |h - y|^2 / 2, by BrainTrace."""
    weights, xs, ys = problem(batch)
    learner = braintrace.compile(
        LeakyTanh(weights, LEAKS[model]), algorithm, xs[0], batch_size=batch, **options
    )

    def loss(x, y):
        return jnp.sum((learner(x) - y) ** 2) / 2

    (gradient,) = learner.etrace_grad(xs, ys, step_fn=loss, reduction="sum").values()
    return np.asarray(gradient)


def ours(model: str, estimator: InfluenceEstimator, batch: int) -> tuple[np.ndarray, list[Any]]:
    """The same by an estimator of ours, and its states."""
    weights, xs, ys = problem(batch)
    cell = cells.from_function(
        step_with(LEAKS[model]), lambda key: weights, jnp.zeros(UNITS, jnp.float32)
    )
    linearizer = make_linearizer(cell, xs[0, 0], batch)

    @jax.jit
    def step(state, h, x, y, key):
        linearization = linearizer.linearize(weights, h, x, jnp.ones(batch, jnp.float32))
        state = estimator.push(state, linearization, key)
        h, _ = jax.vmap(cell.step, in_axes=(None, 0, 0))(weights, h, x)
        return state, h, linearizer.gradient(weights, estimator.pull(state, h - y)), linearization

    state, h = estimator.init(linearizer.structure), jnp.zeros((batch, UNITS), jnp.float32)
    total, history = 0, []
    for x, y, key in zip(xs, ys, jax.random.split(jax.random.key(0), STEPS)):
        before = state
        state, h, gradient, linearization = step(state, h, x, y, key)
        history.append((before, linearization, state))
        total += np.asarray(gradient)
    return total, history


@pytest.fixture(autouse=True)
def single_precision():
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("model", LEAKS)
@pytest.mark.parametrize(
    ("estimator", "algorithm", "options"),
    [
        (estimators.rtrl(), braintrace.SnAp, {"n": 2}),
        (estimators.snap(order=2), braintrace.SnAp, {"n": 2}),
        (estimators.snap(order=1), braintrace.SnAp, {"n": 1}),
        (estimators.e_prop(), braintrace.D_RTRL, {}),
        (estimators.e_prop(), braintrace.EProp, {}),
        (estimators.pp_prop(0.8), braintrace.pp_prop, {"decay_or_rank": 0.8}),
    ],
    ids=["rtrl", "snap(2)", "snap(1)", "e_prop D-RTRL", "e_prop EProp", "pp_prop"],
)
def test_traces_give_the_gradient_of_braintrace(model, estimator, algorithm, options):
    gradient, _ = ours(model, estimator, batch=2)
    np.testing.assert_allclose(
        gradient, theirs(model, algorithm, 2, **options), rtol=1e-4, atol=1e-5
    )


def test_the_compared_algorithms_differ():
    gradients = [
        ours("leaky tanh", estimator, batch=2)[0]
        for estimator in (estimators.rtrl(), estimators.snap(order=1), estimators.e_prop())
    ]
    for i in range(3):
        assert np.abs(gradients[i] - gradients[i - 1]).max() > 1e-2


@pytest.mark.parametrize("model", LEAKS)
def test_uoro_of_the_same_signs_is_that_of_braintrace(model):
    gradient, history = ours(model, estimators.uoro(), batch=1)
    signs = []
    for before, linearization, after in history:
        carried = linearization.jacobian.times_vector(before.state_vector)[0]
        # s~ is a multiple of J s~ plus one of the signs: of all signs they are those that fit.
        every = 2.0 * (np.arange(2**UNITS)[:, None] >> np.arange(UNITS) & 1) - 1
        basis = np.stack([np.broadcast_to(carried, every.shape), every], axis=-1)
        solved = [np.linalg.lstsq(b, after.state_vector[0], rcond=None)[0] for b in basis]
        misfit = [
            np.abs(b @ x - after.state_vector[0]).max() + 1e3 * (x.min() < -1e-6)
            for b, x in zip(basis, solved)
        ]
        assert np.sort(misfit)[0] < 1e-4 < np.sort(misfit)[1]
        signs.append(every[np.argmin(misfit)])
    table = jnp.asarray(np.array(signs), jnp.float32)

    class SameSigns(braintrace.UORO):
        def _draw_projection(self, key, step, group_index, shape, dtype):
            return table[step].reshape(shape).astype(dtype)

    other = theirs(model, SameSigns, 1, vjp_method="single-step")
    np.testing.assert_allclose(gradient, other, rtol=1e-3, atol=1e-4)
