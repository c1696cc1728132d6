import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax._src.estimators.per_head import MAX_HEADS, heads_of
from kfrtrl_jax.base import Mask, Site
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.linearization import make_linearizer
from kfrtrl_jax.trajectories import gradients, push_all, trajectory
from tests.estimators import monte_carlo
from tests.helpers.interpreter import evaluated
from tests.linearization.references import cell_of

X = 3
SLSTM = cells.slstm(input_size=X, hidden_size=4, num_heads=2)


def masked(p, h, x):
    h = jnp.tanh(h @ (p["r"] * blocks(2, 2, 2)) + x @ p["w"])
    return h, h


def with_a_gate_that_all_units_open(p, h, x):
    heads = jnp.einsum("hi,hio->ho", h.reshape(2, 2), p["r"]).reshape(-1)
    h = jnp.tanh(heads + x @ p["w"]) / (1 + jnp.exp(-(h @ p["v"] + p["b"])))
    return h, h


CELLS = {
    "slstm": SLSTM,
    "masked": cell_of(masked, 4, r=(4, 4), w=(X, 4)),
    "gated": cell_of(with_a_gate_that_all_units_open, 4, r=(2, 2, 2), w=(X, 4), v=(4, 4), b=(4,)),
}


def blocks(count, rows=2, columns=3):
    return np.kron(np.eye(count, dtype=bool), np.ones((rows, columns), bool))


def site_of(nonzero):
    mask = None if nonzero is None else Mask(nonzero)
    return Site(*(nonzero.shape if mask else (4, 6)), "w", weights_mask=mask)


def test_blocks_are_heads_also_with_inputs_that_all_read_and_columns_in_any_order():
    order = np.random.default_rng(0).permutation(9)
    nonzero = np.concatenate([np.ones((1, 9), bool), blocks(3), np.zeros((1, 9), bool)])[:, order]
    heads = heads_of(site_of(nonzero))
    inputs = sorted(head.inputs.array.tolist() for head in heads)
    assert inputs == [[0, 1, 2], [0, 3, 4], [0, 5, 6]]
    rebuilt = np.zeros_like(nonzero)
    for head in heads:
        rebuilt[head.place] = True
    np.testing.assert_array_equal(rebuilt, nonzero)


@pytest.mark.parametrize(
    "nonzero",
    [
        None,
        blocks(MAX_HEADS + 1),
        # Of unequal size.
        np.concatenate([blocks(2), np.repeat([[False] * 3 + [True] * 3], 2, axis=0)]),
        blocks(3)[:, :8],
        # A row that some read and others do not.
        blocks(3) | np.repeat([[True] * 6 + [False] * 3], 6, axis=0),
        np.random.default_rng(1).random((8, 8)) < 0.5,
    ],
)
def test_other_zeros_are_not_heads(nonzero):
    assert heads_of(site_of(nonzero)) == ()


def influence_rows(estimator, along, cotangents, segment_length=1):
    """The gradients that an estimator gives after the whole trajectory, [C, P]."""

    def rows(linearizations):
        steps = along._replace(linearizations=linearizations)
        state = push_all(estimator, steps, jax.random.key(0), segment_length)
        return gradients(estimator, state, cotangents, along.structure)

    return evaluated(rows, along.linearizations)


@pytest.mark.parametrize("name", CELLS)
def test_with_exact_estimators_it_changes_nothing(name):
    along = trajectory(CELLS[name], input_size=X, batch_size=2, steps=6, seed=0)
    cotangents = jax.random.normal(jax.random.key(0), (3, 2, along.structure.state_size))

    def rows(estimator, segment_length):
        return influence_rows(estimator, along, cotangents, segment_length)

    exact = rows(estimators.rtrl(), 1)
    for estimator, segment_length in [(estimators.rtrl(), 3), (estimators.snap(order=10), 1)]:
        found = rows(estimators.per_head(estimator), segment_length)
        np.testing.assert_allclose(found, exact, atol=1e-12)


@pytest.mark.parametrize(
    ("estimator", "segment_length"),
    [(estimators.kf_rtrl(), 1), (estimators.ok(2), 3)],
)
def test_the_mean_over_draws_is_the_exact_influence(estimator, segment_length):
    one, cell = estimators.per_head(estimator), CELLS["masked"]
    z = monte_carlo.deviations(one, cell, draws=1024, steps=6, segment_length=segment_length)
    assert np.max(np.abs(z)) < 4


def test_each_head_has_products_of_its_own():
    """Of rank m a sum of products is exact: for a head fewer of them are enough."""
    along = trajectory(CELLS["masked"], input_size=X, batch_size=2, steps=12, seed=0)
    cotangents = jax.random.normal(jax.random.key(0), (3, 2, 4))

    def rows(estimator):
        return influence_rows(estimator, along, cotangents)

    exact, rank = rows(estimators.rtrl()), X + 2
    np.testing.assert_allclose(rows(estimators.per_head(estimators.ok(rank))), exact, atol=1e-9)
    assert np.max(np.abs(rows(estimators.ok(rank)) - exact)) > 1e-4


def test_states_are_those_of_the_heads():
    structure = make_linearizer(SLSTM, jnp.zeros(X), 2).structure
    estimator = estimators.per_head(estimators.kf_rtrl())
    state = jax.eval_shape(lambda: estimator.init(structure))
    assert [u.shape for u in state.inner.input_factor] == [(2, X + 2 + 1)] * 2
    assert set(estimator.diagnostics(estimator.init(structure))) >= {"input_factor_norm_1"}


def test_cells_without_heads_are_refused():
    structure = make_linearizer(cells.gru(input_size=X, hidden_size=4), jnp.zeros(X), 1).structure
    with pytest.raises(UnsupportedCellError, match="none of its weights is block-diagonal"):
        estimators.per_head(estimators.ok(2)).init(structure)
