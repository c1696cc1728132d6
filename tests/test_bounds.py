"""Numbers within intervals, written as in mathematics."""

import math

import jax
import pytest

from kfrtrl_jax._src import bounds


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "allowed"),
    [
        ("[0, 1)", (0, 0.5), (-0.1, 1, 2, math.inf), "in [0, 1)"),
        ("(0, 1]", (0.5, 1), (0, 1.5), "in (0, 1]"),
        ("[1, inf)", (1, 1e300), (0, -math.inf), "at least 1"),
        ("(0, inf)", (1e-300,), (0, -1), "more than 0"),
        ("(-inf, inf)", (-1e300, 0), (math.inf, -math.inf), "finite"),
    ],
)
def test_an_interval_holds_the_ends_that_it_names(interval, inside, outside, allowed):
    assert [bounds.missed(interval, x) for x in inside] == [None] * len(inside)
    assert {bounds.missed(interval, x) for x in (*outside, math.nan)} == {allowed}


def test_what_is_too_large_for_no_bound_must_be_finite():
    assert bounds.missed("[1, inf)", math.inf) == "finite"


def test_the_first_number_outside_is_named():
    with pytest.raises(ValueError, match=r"^b must be in \[0, 1\], got 2$"):
        bounds.require("[0, 1]", a=0, b=2, c=3)


def test_a_traced_number_passes():
    jax.eval_shape(lambda x: bounds.require("[0, 1]", x=x), 2.0)
