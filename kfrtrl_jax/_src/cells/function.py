"""Cells from any step function written in JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.one_step import require_result


def from_function(
    step: Callable[[Any, Any, Any], tuple[Any, Array]],
    init: Callable[[Key], Any],
    initial_carry: Callable[[], Any] | Any,
) -> Cell:
    """A cell from plain functions of one lane, for example of a Haiku-style network.

    Args:
      step: (params, carry, x) -> (carry, output).
      init: key -> params, a pytree of float arrays.
      initial_carry: () -> carry, or the carry itself: a pytree of arrays. Leaves that are not floats
        (counters, PRNG keys) have no derivative; each lane has its own PRNG keys, which are not reset.

    Returns:
      The cell. Its step raises ValueError if it does not keep the carry's structure, shapes and types.
    """
    make_carry = initial_carry if callable(initial_carry) else lambda: initial_carry

    def checked_step(params: Any, carry: Any, x: Any) -> tuple[Any, Array]:
        return require_result(params, carry, step(params, carry, x))

    return Cell(init, make_carry, checked_step)


def output_shape(cell: Cell, input_size: int) -> Any:
    """The shapes and types of a cell's output on a vector of this length, without computing it."""
    x = jax.ShapeDtypeStruct((input_size,), jax.dtypes.canonicalize_dtype(float))

    def step(x: Array) -> Any:
        return cell.step(cell.init(jax.random.key(0)), cell.initial_carry(), x)[1]

    return jax.eval_shape(step, x)


def typed_key(name: str, key: Any) -> Key:
    """A PRNG key, typed or raw, as a typed one.

    Raises:
      ValueError: if it is none, by the name of the argument.
    """
    typed = isinstance(key, jax.Array) and jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key)
    try:
        key = key if typed else jax.random.wrap_key_data(key)
        if key.shape == ():
            return key
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name} must be a PRNG key, such as jax.random.key(0)")


def without_gradient(tree: Any) -> Any:
    """The tree with its floats cut off from differentiation."""

    def leaf(x: Any) -> Any:
        is_inexact = jax.numpy.issubdtype(jax.numpy.result_type(x), jax.numpy.inexact)
        return jax.lax.stop_gradient(x) if is_inexact else x

    return jax.tree.map(leaf, tree)
