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
from kfrtrl_jax._src.lanes import initial_lanes, restarted
from kfrtrl_jax.base import Cell
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.linearization import make_linearizer
from tests.helpers.interpreter import evaluated
from tests.helpers.nights import some
from tests.linearization.derivative_rules import NOT_LINEAR, UNSUPPORTED
from tests.linearization.operations import SINGULAR, N
from tests.linearization.random_cells import (
    ALL,
    CARRIES,
    HALF,
    SUPPORTED,
    Draw,
    X,
    draws,
    make_cell,
    side_by_side,
)
from tests.linearization.references import (
    LANES,
    all_finite,
    assert_close,
    assert_exact,
    random_point,
    unrolled_gradient,
)

TOGETHER = 16
GROUPS = [list(SUPPORTED)[i : i + TOGETHER] for i in range(0, len(SUPPORTED), TOGETHER)]
# All are linearized; these learn too.
LEARNED, UNSUPPORTED_LEARNED = some(GROUPS), some(UNSUPPORTED)
NIGHT = "KFRTRL_RANDOM_CELLS" in os.environ
NUMBER = int(os.environ.get("KFRTRL_RANDOM_CELLS", "2"))


def drawn(number):
    return settings(
        max_examples=number,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=not NIGHT,
        # To shrink what fails takes minutes: that is for the nights.
        phases=[Phase.reuse, Phase.generate, *([Phase.shrink] if NIGHT else [])],
    )


def exact(draw, dtype=jnp.float64, **options):
    """The linearizer of a draw's cell, which is exact; passed over where JAX itself is not finite."""
    cell = make_cell(draw, dtype=dtype)
    point = random_point(cell, X, seed=draw.seed, dtype=dtype)
    linearizer = assert_exact(cell, point, **options)
    assume(linearizer is not None)
    return linearizer


def assert_supported(names, learned=True):
    """Each kind of carry takes its turn."""
    turn = list(SUPPORTED).index(names[0]) // TOGETHER
    cell = make_cell(side_by_side(names)._replace(carry=CARRIES[turn % len(CARRIES)]))
    point = random_point(cell, X, steps=4)
    linearizer = assert_exact(cell, point, at_once=True, learned=learned)
    assert linearizer is not None, "JAX's own derivative is not finite"
    assert linearizer.structure.problems == ()


def error_of(name):
    """What is wrong with an operation alone."""
    try:
        assert_supported([name])
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: f"{names[0]}-{names[-1]}")
def test_every_supported_operation_is_exact_beside_a_recurrent_product(names):
    try:
        assert_supported(names, learned=names in LEARNED)
    except Exception:
        errors = [error for error in map(error_of, names) if error]
        if not errors:
            raise
        pytest.fail("\n\n".join(errors), pytrace=False)


@drawn(NUMBER)
@given(draws(SUPPORTED))
def test_random_cells_of_supported_operations_are_exact(draw):
    assert exact(draw).structure.problems == ()


@drawn((NUMBER + 1) // 2)
@given(draws(SUPPORTED), st.sampled_from(list(UNSUPPORTED)), st.integers(0, 9), st.integers(0, 9))
def test_random_cells_with_an_unsupported_operation_are_refused_and_never_wrong(
    draw, name, first, second
):
    # The last operation makes the new h, so the unsupported one surely reaches the state.
    linearizer = exact(draw._replace(program=(*draw.program, (name, first, second))))
    with pytest.raises(UnsupportedCellError, match=UNSUPPORTED[name][0]):
        estimators.kf_rtrl().init(linearizer.structure)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_every_unsupported_operation_is_exact_and_named(name):
    cell = make_cell(side_by_side([name]))
    point, learned = random_point(cell, X, steps=4), name in UNSUPPORTED_LEARNED
    linearizer = assert_exact(cell, point, at_once=True, learned=learned)
    with pytest.raises(UnsupportedCellError, match=UNSUPPORTED[name][0]):
        estimators.kf_rtrl().init(linearizer.structure)


@drawn(3 * NUMBER)
@given(draws(SUPPORTED), st.sampled_from(list(NOT_LINEAR)), st.integers(0, 9))
def test_random_cells_with_a_derivative_rule_that_is_no_linear_map_are_refused(draw, name, place):
    cell = make_cell(draw._replace(program=((name, place, 0), *draw.program)), ALL | NOT_LINEAR)
    with pytest.raises(UnsupportedCellError, match="custom_vjp_call"):
        make_linearizer(cell, jnp.zeros(X), 1)


@drawn((NUMBER + 1) // 2)
@given(draws(HALF, HALF, ("two", "one", "counter")))
def test_random_cells_of_half_precision_are_right_to_their_precision(draw):
    draw = draw._replace(complex_output=False)
    linearizer = exact(draw, jnp.bfloat16, atol=0.2)
    assert linearizer.structure.dtype == jnp.bfloat16


def test_few_draws_are_passed_over_as_jax_itself_is_not_finite_there():
    finite = []

    @settings(drawn(16), derandomize=True, phases=[Phase.generate])
    @given(draws(SUPPORTED))
    def draw_some(draw):
        cell = make_cell(draw)
        point = random_point(cell, X, seed=draw.seed)
        finite.append(all_finite(unrolled_gradient(cell, point)))

    draw_some()
    assert np.mean(finite) > 0.9


@pytest.mark.parametrize("carry", ["two", "one", "complex"])
def test_infinite_derivatives_at_the_initial_state_do_no_harm_in_the_papers_form(carry):
    # That form asks for an output that reads the new state alone, and for segments of one step.
    cell = make_cell(side_by_side(SINGULAR)._replace(carry=carry, picks=(0,)))
    point = random_point(cell, X, steps=4)
    learned = {"at_once": True, "length": 1, "immediate": "estimated"}
    assert assert_exact(cell, point, **learned) is not None


def cell_of(step, size, **shapes):
    generator = np.random.default_rng(0)
    params = {name: generator.normal(size=shape) / 2 for name, shape in shapes.items()}
    return Cell(lambda key: jax.tree.map(jnp.asarray, params), lambda: jnp.zeros(size), step)


@pytest.mark.parametrize(("heads", "units"), [(65, 1), (66, 2)])
def test_many_heads_are_exact_and_supported(heads, units):
    size = heads * units

    def step(params, h, x):
        rotated = jnp.einsum("hi,hij->hj", h.reshape(heads, units), params["heads"]).reshape(-1)
        h = jnp.tanh(x @ params["input"] + rotated)
        return h, h

    cell = cell_of(step, size, heads=(heads, units, units), input=(X, size))
    linearizer = assert_exact(cell, random_point(cell, X))
    assert linearizer.structure.problems == ()
    estimators.kf_rtrl().init(linearizer.structure)


def test_a_scan_of_many_iterations_is_exact_and_supported():
    def step(params, h, x):
        def one(s, _):
            return jnp.tanh(s @ params["r"] + x @ params["w"]), None

        h, _ = jax.lax.scan(one, h, length=100)
        return h, h

    cell = cell_of(step, N, r=(N, N), w=(X, N))
    linearizer = assert_exact(cell, random_point(cell, X))
    estimators.kf_rtrl().init(linearizer.structure)


@pytest.mark.parametrize("carry", ["typed_key", "raw_key"])
def test_noise_differs_between_lanes_and_is_not_replayed_after_a_restart(carry):
    cell = make_cell(Draw((("two_matrices", 0, 1), ("gate", 0, 1)), carry=carry))
    params, x = cell.init(jax.random.key(0)), jnp.zeros(X)
    lanes = initial_lanes(cell, LANES)
    after = jax.vmap(lambda c: cell.step(params, c, x)[0])(lanes)
    start = restarted(cell, after, jnp.ones(LANES, bool))
    again = jax.vmap(lambda c: cell.step(params, c, x)[0])(start)
    assert all(np.all(start[i] == lanes[i]) for i in range(2))
    states = np.concatenate([after[1], again[1]])
    assert len(np.unique(states, axis=0)) == 2 * LANES


@pytest.mark.parametrize("names", [list(SUPPORTED)[::20], list(SUPPORTED)[10::20]])
def test_the_interpreter_of_these_tests_gives_what_xla_gives(names):
    cell = make_cell(side_by_side(names))
    point = random_point(cell, X)

    def rows(params, carry, x):
        state, pullback = jax.vjp(lambda c: cell.step(params, (c, carry[1]), x)[0][1], carry[0])
        return state, jax.vmap(pullback)(jnp.eye(N))

    arguments = (point.params, point.carry, point.inputs[0, 0])
    for got, want in zip(
        jax.tree.leaves(evaluated(rows, *arguments)), jax.tree.leaves(jax.jit(rows)(*arguments))
    ):
        assert_close(got, want, 1e-12, "the step")
