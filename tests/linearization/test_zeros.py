import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax.base import Cell
from kfrtrl_jax.linearization import explain, make_linearizer

N = 4
MASK = np.arange(N * N).reshape(N, N) % 3 == 0
FULL = np.ones((N, N), bool)
LOWER = np.tril(FULL)
ONE_ROW = np.arange(N)[:, None] == 1

# From a parameter [N, N] to weights, and where these can be non-zero.
WEIGHTS = {
    "a mask": (lambda w: w * MASK, MASK),
    "a mask in the step": (lambda w: jnp.tril(w), LOWER),
    "a mask on the other side": (lambda w: jnp.asarray(MASK, w.dtype) * w, MASK),
    "a choice": (lambda w: jnp.where(MASK, 0.0, w), ~MASK),
    "a choice of parameters": (lambda w: jnp.where(MASK, w, w.T * LOWER), MASK | LOWER),
    "two masks": (lambda w: w * MASK * LOWER, MASK & LOWER),
    "a sum": (lambda w: w * MASK + jnp.tanh(w) * LOWER, MASK | LOWER),
    "moved": (lambda w: (w * MASK).T[::-1], MASK.T[::-1]),
    "parts": (lambda w: jnp.concatenate([w[:2] * MASK[:2], w[2:]]), np.r_[MASK[:2], FULL[2:]]),
    "padded": (lambda w: jnp.pad(w[:1], ((1, 2), (0, 0))), np.broadcast_to(ONE_ROW, (N, N))),
    "written": (lambda w: jnp.zeros((N, N)).at[1].set(w[0]), np.broadcast_to(ONE_ROW, (N, N))),
    "normalized": (lambda w: w * LOWER / jnp.sum(w**2), LOWER),
    "a product": (lambda w: jnp.tril(w) @ jnp.tril(w), LOWER),
    "remat": (jax.checkpoint(lambda w: jnp.sin(w * MASK)), MASK),
    # Nothing may be claimed of these.
    "not zero at zero": (lambda w: jnp.exp(w * MASK), FULL),
    "a choice by parameters": (lambda w: jnp.where(w > 0, w, w * MASK), FULL),
    "of value zero": (lambda w: w * 0.5 - 0.5 * w, FULL),
    "a derivative rule of its own": (lambda w: jax.nn.relu(w * LOWER), FULL),
}


def cell_of(transform):
    def step(params, h, x):
        h = jnp.tanh(h @ transform(params["w"]) + x)
        return h, h

    return Cell(lambda key: {"w": jax.random.normal(key, (N, N))}, lambda: jnp.zeros(N), step)


def everywhere(mask):
    return FULL if mask is None else mask.array


@pytest.mark.parametrize("name", WEIGHTS)
def test_known_zeros_of_the_weights(name):
    transform, expected = WEIGHTS[name]
    structure = make_linearizer(cell_of(transform), jnp.zeros(N), 1).structure
    (site,) = structure.sites
    np.testing.assert_array_equal(everywhere(site.weights_mask), expected)
    np.testing.assert_array_equal(everywhere(structure.jacobian_mask), expected.T)
    values = transform(jax.random.normal(jax.random.key(0), (N, N)))
    assert not np.any(np.asarray(values)[~expected])


def test_jacobians_are_followed_through_layers_and_gates():
    """h' = tanh(V^T tanh(W^T h)) + c, c' = u * c with masked W, V and u."""
    chain = np.eye(N, k=1, dtype=bool)
    half = np.arange(N) < 2

    def step(params, carry, x):
        h, c = carry
        inner = jnp.tanh(h @ (params["w"] * chain) + x)
        h = jnp.tanh(inner @ (params["v"] * chain)) + c
        return (h, params["u"] * half * c), h

    def init(key):
        return {"u": jnp.ones(N), "v": jnp.ones((N, N)), "w": jnp.ones((N, N))}

    cell = Cell(init, lambda: (jnp.zeros(N), jnp.zeros(N)), step)
    structure = make_linearizer(cell, jnp.zeros(N), 1).structure
    h_by_h = np.eye(N, k=-2, dtype=bool)
    expected = np.block([[h_by_h, np.eye(N)], [np.zeros((N, N)), np.diag(half)]])
    np.testing.assert_array_equal(structure.jacobian_mask.array, expected)
    by_label = {site.label: site for site in structure.sites}
    np.testing.assert_array_equal(by_label["u"].weights_mask.array, half[None])
    np.testing.assert_array_equal(by_label["w"].weights_mask.array, chain)
    derivative = by_label["w"].derivative_mask
    if derivative is not None:  # where it is not held as bands
        np.testing.assert_array_equal(derivative.array[:N], np.eye(N, k=-1))


def test_masks_that_are_traced_from_outside_are_not_looked_at():
    structures = []

    @jax.jit
    def build(mask):
        cell = cell_of(lambda w: w * mask)
        structures.append(make_linearizer(cell, jnp.zeros(N), 1).structure)
        return mask

    build(jnp.asarray(MASK, float))
    assert structures[0].jacobian_mask is None
    assert structures[0].sites[0].weights_mask is None


def test_explain_tells_how_full_the_weights_and_the_jacobian_are(capsys):
    explain(cell_of(lambda w: w * LOWER), jnp.zeros(N), estimators={})
    printed = capsys.readouterr().out
    assert "J by leaf of the carry: dense (62.5% can be non-zero)" in printed
    assert "[4 x 4] of w (62.5% can be non-zero); D diagonal\n" in printed
    explain(cell_of(lambda w: w), jnp.zeros(N), estimators={})
    assert "can be non-zero" not in capsys.readouterr().out
