"""Cells from any step function written in JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from kfrtrl_jax._src.base import Array, Cell, Key


def from_function(
    step: Callable[[Any, Any, Any], tuple[Any, Array]],
    init: Callable[[Key], Any],
    initial_carry: Callable[[], Any] | Any,
) -> Cell:
    """A cell from plain functions of one lane, for example of an Equinox or Haiku-style network.

    Args:
      step: (params, carry, x) -> (carry, output).
      init: key -> params, a pytree of float arrays.
      initial_carry: () -> carry, or the carry itself: a pytree of arrays. Leaves that are not floats
        (counters, PRNG keys) have no derivative; each lane has its own PRNG keys, which are not reset.

    Returns:
      The cell, whose step checks that it keeps the carry's structure, shapes and types.
    """
    make_carry = initial_carry if callable(initial_carry) else lambda: initial_carry

    def checked_step(params: Any, carry: Any, x: Any) -> tuple[Any, Array]:
        result = step(params, carry, x)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError("a cell's step must return (carry, output)")
        new, output = result
        before, after = (jax.tree.map(_shape, tree) for tree in (carry, new))
        if before != after:
            raise TypeError(
                f"a cell's step must keep the carry's structure, shapes and types: {before} became "
                f"{after}"
            )
        return new, output

    return Cell(init, make_carry, checked_step)


def _shape(leaf: Any) -> str:
    return f"{jax.numpy.result_type(leaf)}{list(jax.numpy.shape(leaf))}"
