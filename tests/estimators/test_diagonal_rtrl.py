import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.linearization import make_linearizer
from tests.estimators.test_snap import diagonal, entries, rows_of_all
from tests.trajectories import INPUT_SIZE, SMALL_CELLS, run

LRU = cells.lru(input_size=INPUT_SIZE, hidden_size=4)


def test_it_is_rtrl_with_an_entry_for_each_weight_and_variable_of_its_unit():
    for cell, unit_size in [(LRU, 2), (diagonal(), 1)]:
        trajectory, estimator = run(cell, 6), estimators.diagonal_rtrl(unit_size)
        rows, first_order, exact = rows_of_all(
            [estimator, estimators.snap(), estimators.rtrl()], trajectory
        )
        np.testing.assert_allclose(rows, exact, atol=1e-10)
        # A complex eigenvalue turns real parts into imaginary ones: that is beyond order 1.
        assert np.allclose(first_order, exact, atol=0.1) == (unit_size == 1)
        structure = trajectory.linearizer.structure
        weights = sum(site.input_size * site.output_size for site in structure.sites)
        assert entries(estimator, structure) == structure.batch_size * unit_size * weights


@pytest.mark.parametrize(
    ("cell", "unit_size"),
    [
        (SMALL_CELLS["vanilla"], 2),
        (SMALL_CELLS["deep_recurrent_highway"], 2),
        (SMALL_CELLS["lstm"], 2),
        (LRU, 1),
    ],
)
def test_cells_whose_units_are_linked_are_refused_by_site(cell, unit_size):
    structure = make_linearizer(cell, jnp.zeros(INPUT_SIZE), 1).structure
    with pytest.raises(UnsupportedCellError) as refusal:
        estimators.diagonal_rtrl(unit_size).init(structure)
    message = str(refusal.value)
    assert f"a weight of {structure.sites[0].label} reaches more than unit_size=" in message
    assert "snap() would be biased" in message
    assert "\n" not in message


def test_a_unit_size_of_zero_is_refused():
    with pytest.raises(ValueError, match="unit_size must be at least 1, got 0"):
        estimators.diagonal_rtrl(0)
