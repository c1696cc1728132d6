"""The Monte-Carlo mean of each unbiased estimator is the exact influence matrix."""

import functools
import importlib
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from tests.cells.test_brought_cells import BROUGHT
from tests.cells.test_flax_cells import CELLS as FLAX_CELLS
from tests.cells.test_flax_cells import LayerNormLSTM, X
from tests.estimators import monte_carlo
from tests.helpers.nights import NIGHT, some
from tests.trajectories import SMALL_CELLS

BROUGHT_CELLS = {
    **FLAX_CELLS,
    **BROUGHT,
    "stack": lambda: cells.from_flax(LayerNormLSTM(3), X),
}
# One of each kind, as all of them take minutes; KFRTRL_NIGHT runs them all.
if not NIGHT:
    kept = ("nnx_gru", "linear_recurrent_unit")
    BROUGHT_CELLS = {name: BROUGHT_CELLS[name] for name in kept}
UNBIASED = {
    "uoro": estimators.uoro(),
    "kf_rtrl": estimators.kf_rtrl(),
    "average": estimators.average(estimators.kf_rtrl(), 2),
}


def deviations(estimator, cell):
    return monte_carlo.deviations(estimator, cell, draws=20_480, steps=12)


@functools.cache
def brought(cell):
    """Made once: it is known by its functions, and so linearized once."""
    return BROUGHT_CELLS[cell]()


@pytest.mark.parametrize(
    ("cell", "name"), some(itertools.product(BROUGHT_CELLS, ["uoro", "kf_rtrl"]), 3)
)
def test_mean_over_draws_is_the_exact_influence_of_a_brought_cell(cell, name):
    z = monte_carlo.deviations(UNBIASED[name], brought(cell), draws=4096, steps=6)
    assert np.max(np.abs(z)) < 4


@pytest.mark.parametrize(
    ("cell", "name"), some(itertools.product(SMALL_CELLS, ["uoro", "kf_rtrl"]), 5)
)
def test_mean_over_draws_is_the_exact_influence(cell, name):
    assert np.max(np.abs(deviations(UNBIASED[name], SMALL_CELLS[cell]))) < 4


def test_average_of_copies_is_unbiased():
    z = deviations(UNBIASED["average"], SMALL_CELLS["recurrent_highway"])
    assert np.max(np.abs(z)) < 4


@pytest.mark.parametrize(("name", "module"), [("uoro", "uoro"), ("kf_rtrl", "common")])
def test_equal_signs_are_caught(name, module, monkeypatch):
    """The tests above have teeth: with equal signs they see the bias."""
    monkeypatch.setattr(
        importlib.import_module(f"kfrtrl_jax._src.estimators.{module}"),
        "random_signs",
        lambda key, shape, dtype: jnp.ones(shape, dtype),
    )
    z = deviations(UNBIASED[name], SMALL_CELLS["vanilla"])
    assert np.max(np.abs(z)) > 100
