"""Random cells: what is learned of them is JAX's own derivative, or what stands in the way is named.

KFRTRL_RANDOM_CELLS sets how many of each kind are drawn (the suite draws a few; 2000 are a night's
check of the same properties).
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from kfrtrl_jax import estimators
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.linearization import make_linearizer
from tests.linearization.derivative_rules import NOT_LINEAR, UNSUPPORTED
from tests.linearization.interpreter import evaluated
from tests.linearization.random_cells import (
    ALL,
    HALF,
    SUPPORTED,
    X,
    draws,
    make_cell,
    side_by_side,
)
from tests.linearization.references import (
    all_finite,
    assert_close,
    assert_exact,
    random_point,
    unrolled_gradient,
)

TOGETHER = 8
GROUPS = [list(SUPPORTED)[i : i + TOGETHER] for i in range(0, len(SUPPORTED), TOGETHER)]
# Shrinking what fails takes minutes: it is for the nights.
NIGHT = "KFRTRL_RANDOM_CELLS" in os.environ
DRAWS = settings(
    max_examples=int(os.environ.get("KFRTRL_RANDOM_CELLS", "10")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=not NIGHT,
    phases=[Phase.reuse, Phase.generate, *([Phase.shrink] if NIGHT else [])],
)


def point_of(draw, cell, dtype=jnp.float64):
    return random_point(cell, X, seed=draw.seed, dtype=dtype)


def exact(draw, **options):
    """The linearizer of a draw's cell, which is exact; the draw is passed over where JAX is not finite."""
    cell = make_cell(draw, **options)
    linearizer = assert_exact(cell, point_of(draw, cell))
    assume(linearizer is not None)
    return linearizer


def assert_supported(names):
    cell = make_cell(side_by_side(names))
    linearizer = assert_exact(cell, random_point(cell, X, steps=4), at_once=True)
    assert linearizer is not None, "JAX's own derivative is not finite"
    assert linearizer.structure.problems == ()


def error_of(name):
    """What is wrong with an operation alone."""
    try:
        assert_supported([name])
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("names", GROUPS, ids="-".join)
def test_every_supported_operation_is_exact_beside_a_recurrent_product(names):
    try:
        assert_supported(names)
    except Exception:
        # Which of them is it?
        errors = [error for error in map(error_of, names) if error]
        if not errors:
            raise
        pytest.fail("\n\n".join(errors), pytrace=False)


@DRAWS
@given(draws(SUPPORTED))
def test_random_cells_of_supported_operations_are_exact(draw):
    assert exact(draw).structure.problems == ()


@DRAWS
@given(draws(SUPPORTED), st.sampled_from(list(UNSUPPORTED)), st.integers(0, 9), st.integers(0, 9))
def test_random_cells_with_an_unsupported_operation_are_refused_and_never_wrong(
    draw, name, first, second
):
    # The last operation makes the new h, so the unsupported one surely reaches the state.
    program = (*draw.program, (name, first, second))
    linearizer = exact(draw._replace(program=program))
    with pytest.raises(UnsupportedCellError, match=UNSUPPORTED[name][0]):
        estimators.kf_rtrl().init(linearizer.structure)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_every_unsupported_operation_is_exact_and_named(name):
    draw = side_by_side([name])
    cell = make_cell(draw)
    linearizer = assert_exact(cell, point_of(draw, cell))
    with pytest.raises(UnsupportedCellError, match=UNSUPPORTED[name][0]):
        estimators.kf_rtrl().init(linearizer.structure)


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_derivative_rules_that_are_no_linear_map_are_refused(name):
    cell = make_cell(side_by_side([name]), ALL | NOT_LINEAR)
    with pytest.raises(UnsupportedCellError, match="custom_vjp_call"):
        make_linearizer(cell, jnp.zeros(X), 1)


@DRAWS
@given(draws(HALF, HALF, ("two", "one", "counter")))
def test_random_cells_of_half_precision_are_right_to_their_precision(draw):
    draw = draw._replace(complex_output=False)
    cell = make_cell(draw, dtype=jnp.bfloat16)
    linearizer = assert_exact(cell, point_of(draw, cell, jnp.bfloat16), atol=0.2)
    assume(linearizer is not None)
    assert linearizer.structure.dtype == jnp.bfloat16


def test_few_draws_are_passed_over_for_what_is_not_finite_in_jax_itself():
    finite = []

    @settings(DRAWS, max_examples=50, derandomize=True, phases=[Phase.generate])
    @given(draws(SUPPORTED))
    def draw_some(draw):
        cell = make_cell(draw)
        point = point_of(draw, cell)
        finite.append(all_finite(unrolled_gradient(cell, point)))

    draw_some()
    assert np.mean(finite) > 0.9


@pytest.mark.parametrize("names", [list(SUPPORTED)[::17], list(SUPPORTED)[8::17]])
def test_operations_run_one_by_one_give_what_xla_gives(names):
    """Of the interpreter that all these tests rely on."""
    cell = make_cell(side_by_side(names))
    point = point_of(side_by_side(names), cell)
    x = point.inputs[0, 0]
    results = evaluated(cell.step, point.params, point.carry, x)
    for got, want in zip(
        jax.tree.leaves(results), jax.tree.leaves(jax.jit(cell.step)(point.params, point.carry, x))
    ):
        assert_close(got, want, 1e-12, "the step")
