"""Each fault that the library once had, put back, is found: by its own check, and by random cells.

KFRTRL_FAULTS=1 runs the second, which takes minutes.
"""

import itertools
import os

import jax.numpy as jnp
import optax
import pytest

from kfrtrl_jax import cells, readouts
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.learning import make_learner
from kfrtrl_jax.linearization import check, make_linearizer
from tests.helpers.nights import some
from tests.linearization.derivative_rules import NOT_LINEAR
from tests.linearization.faults import FAULTS, put_back
from tests.linearization.random_cells import ALL, make_cell, side_by_side
from tests.linearization.test_idioms import CLIPPED, EXACT, X, with_function
from tests.linearization.test_random_cells import GROUPS, assert_supported

CELLS = {**{name: cell for name, (cell, _) in EXACT.items()}, "clipped": with_function(CLIPPED)}
# Two keys that are equal are no wrong derivative.
IN_DERIVATIVES = [name for name, fault in FAULTS.items() if fault.idiom]


@pytest.mark.parametrize("name", some(IN_DERIVATIVES))
def test_the_check_of_a_cell_finds_the_fault_put_back(name, monkeypatch):
    put_back(monkeypatch, name)
    with pytest.raises(UnsupportedCellError, match=r"is not its derivative: .* at "):
        check(CELLS[FAULTS[name].idiom], jnp.zeros(X))


def test_the_check_of_a_cell_finds_wrong_predictions(monkeypatch):
    put_back(monkeypatch, "equal if they print alike")
    with pytest.raises(UnsupportedCellError, match=r"output of this cell, as .* own step gives"):
        check(CELLS["tables that print alike"], jnp.zeros(X))


@pytest.mark.self_check
def test_a_check_that_had_nothing_to_compare_says_so():
    """Both branches of a where have a derivative, and 0 times that of the infinite one is NaN."""
    gru = cells.gru(input_size=3, hidden_size=2)

    def step(params, h, x):
        h, _ = gru.step(params, h, x)
        h = jnp.where(x[0] > 10, jnp.inf * h, h)
        return h, h

    report = check(gru._replace(step=step), jnp.zeros(3))
    assert report.points == 0
    message = "not checked: the derivatives of this cell by jax.vjp are not finite at any"
    assert message in str(report)
    with pytest.warns(UserWarning, match=message):
        make_learner(
            gru._replace(step=step),
            readouts.linear(input_size=2, output_size=1),
            "truncated",
            optax.sgd(0.1),
            batch_size=1,
            example_input=jnp.zeros(3),
        )


def error_of(names):
    """What is wrong with a cell of these operations, in one line."""
    try:
        assert_supported(names)
    except Exception as error:
        return f"{type(error).__name__} on {', '.join(names)}: {str(error).strip()[:200]!r}"
    return None


def accepted(name):
    """Whether an operation without a Jacobian is taken, in one line."""
    try:
        make_linearizer(make_cell(side_by_side([name]), ALL | NOT_LINEAR), jnp.zeros(X), 2)
    except UnsupportedCellError:
        return None
    return f"{name} is accepted"


@pytest.mark.skipif("KFRTRL_FAULTS" not in os.environ, reason="run by hand: KFRTRL_FAULTS=1")
@pytest.mark.parametrize("name", FAULTS)
def test_random_cells_find_the_fault_put_back(name, monkeypatch):
    put_back(monkeypatch, name)
    errors = itertools.chain(map(accepted, NOT_LINEAR), map(error_of, GROUPS))
    found = next((error for error in errors if error), None)
    print(f"{name}: {found}")
    assert found is not None
