"""Cells, readouts and optimizers in another precision than JAX's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from kfrtrl_jax._src.base import Cell, Readout

Precision = Literal["bfloat16", "float16", "float32", "float64"]
_COMPLEX = {"float32": jnp.complex64, "float64": jnp.complex128}


class Float32Copy(NamedTuple):
    """The state of `in_float32`.

    Attributes:
      inner: of the optimizer.
      parameters: in float32.
    """

    inner: Any
    parameters: Any


def cell_in(cell: Cell, dtype: Precision) -> Cell:
    """A cell with its parameters, its carry and all that it computes in one precision.

    Factors of estimators are in the precision of the carry.

    Args:
      cell: in any precision. Arrays that hold no floats stay as they are.
      dtype: its name.

    Raises:
      ValueError: for another dtype, for float64 without `jax_enable_x64`, and, when the cell is used,
        for complex numbers in 16 bits.
    """
    cast = _caster(dtype)
    restart = cell.restart

    def step(params: Any, carry: Any, x: Any) -> tuple[Any, Any]:
        # Parameters and carry come as they begin: the self-check has them in float64.
        new, output = cell.step(params, carry, cast(x))
        return jax.tree.map(_as, new, carry), output

    return Cell(
        init=lambda key: cast(cell.init(key)),
        initial_carry=lambda: cast(cell.initial_carry()),
        step=step,
        restart=restart and (lambda carry: jax.tree.map(_as, restart(carry), carry)),
    )


def readout_in(readout: Readout, dtype: Precision) -> Readout:
    """A readout with its parameters in one precision; predictions have at least float32, for the loss.

    Args:
      readout: in any precision.
      dtype: its name.

    Raises:
      ValueError: as for `cell_in`.
    """
    cast = _caster(dtype)

    def apply(params: Any, output: Any) -> Any:
        return jax.tree.map(_at_least_float32, readout.apply(params, cast(output)))

    return Readout(lambda key: cast(readout.init(key)), apply)


def in_float32(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer that keeps parameters of 16 bits in float32 too, and adds up their updates there.

    With 8 or 11 significant bits alone, no update would count that is small beside its parameter.
    Parameters after an update are those in float32, rounded; what has 32 bits or more is as without.

    Args:
      optimizer: any; its state is as for parameters in float32.

    Its update raises ValueError if it is not given the parameters.
    """

    def init(params: Any) -> Float32Copy:
        copy = jax.tree.map(_at_least_float32, params)
        return Float32Copy(optimizer.init(copy), copy)

    def update(updates: Any, state: Float32Copy, params: Any = None) -> Any:
        if params is None:
            raise ValueError("in_float32 needs the parameters: update(updates, state, params)")
        wide = jax.tree.map(_at_least_float32, updates)
        steps, inner = optimizer.update(wide, state.inner, state.parameters)
        copy = optax.apply_updates(state.parameters, steps)
        # In float32, so that the sum with the parameters is exact: it is the copy, rounded.
        changes = jax.tree.map(
            lambda new, old: _at_least_float32(new.astype(old.dtype)) - _at_least_float32(old),
            copy,
            params,
        )
        return changes, Float32Copy(inner, copy)

    return optax.GradientTransformation(init, update)


def _caster(dtype: str) -> Callable[[Any], Any]:
    if dtype not in get_args(Precision):
        raise ValueError(f"a dtype is bfloat16, float16, float32 or float64, got {dtype!r}")
    if dtype == "float64" and jnp.zeros(()).dtype != jnp.float64:
        raise ValueError("float64 needs JAX_ENABLE_X64=1 in the environment")

    def one(x: Any) -> Any:
        kind = jnp.result_type(x)
        if jnp.issubdtype(kind, jnp.complexfloating):
            if dtype not in _COMPLEX:
                raise ValueError(f"complex numbers have no {dtype}: float32 has 64 bits for each")
            return jnp.asarray(x, _COMPLEX[dtype])
        return jnp.asarray(x, dtype) if jnp.issubdtype(kind, jnp.floating) else x

    return lambda tree: jax.tree.map(one, tree)


def _as(x: Any, like: Any) -> Any:
    is_float = jnp.issubdtype(jnp.result_type(like), jnp.inexact)
    return jnp.asarray(x, jnp.result_type(like)) if is_float else x


def _at_least_float32(x: Any) -> Any:
    kind = jnp.result_type(x)
    is_float = jnp.issubdtype(kind, jnp.floating)
    return jnp.asarray(x, jnp.promote_types(kind, jnp.float32)) if is_float else x
