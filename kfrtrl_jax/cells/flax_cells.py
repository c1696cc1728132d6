"""Recurrent cells of Flax, Linen or NNX, as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import linen, nnx

from kfrtrl_jax.base import Array, Cell, Key
from kfrtrl_jax.cells.function import from_function


def from_flax(module: Any, example_input: Any = None, **apply_kwargs: Any) -> Cell:
    """A Flax recurrent cell, unmodified, with its parameters in Flax's own structure.

    Args:
      module: one of
        - a Linen cell, such as `linen.LSTMCell(features=64)`: any Linen module with
          `initialize_carry(rng, input_shape)` and `__call__(carry, x) -> (carry, output)`;
        - an NNX cell, such as `nnx.LSTMCell(8, 64, rngs=nnx.Rngs(0))`: its parameters are the first
          ones, whatever key `init` is given;
        - a function rngs -> NNX cell, such as `lambda rngs: nnx.LSTMCell(8, 64, rngs=rngs)`: then
          `init(key)` draws new ones.
      example_input: one lane's input, an array or a `jax.ShapeDtypeStruct`. Linen needs it to know
        the parameters' shapes; NNX cells know theirs.
      **apply_kwargs: passed on to each call of the module.

    Returns:
      The cell. A Linen cell's params are its "params" collection, an NNX cell's the `nnx.State` of its
      `nnx.Param`s. Every other variable that it keeps (such as the state of its random streams) is
      part of the carry, which is then (carry, variables); it has no gradient and outlives sequences.

    Raises:
      TypeError: if the module is none of these.
      ValueError: if a Linen module comes without example_input.
    """
    if isinstance(module, linen.Module):
        if example_input is None:
            raise ValueError(
                "a Linen cell needs example_input, one lane's input, to know its shapes"
            )
        return _from_linen(module, example_input, apply_kwargs)
    if isinstance(module, nnx.Module):
        return _from_nnx(lambda rngs: module, example_input, apply_kwargs)
    if callable(module):
        return _from_nnx(module, example_input, apply_kwargs)
    raise TypeError(
        f"from_flax takes a Linen module, an NNX module or a function that makes one, got {module!r}"
    )


def flax_optimized_lstm(*, input_size: int, hidden_size: int) -> Cell:
    """Flax's `linen.OptimizedLSTMCell`, unmodified."""
    x = jax.ShapeDtypeStruct((input_size,), jax.dtypes.canonicalize_dtype(float))
    return from_flax(linen.OptimizedLSTMCell(hidden_size), x)


def flax_gru(*, input_size: int, hidden_size: int) -> Cell:
    """Flax's `linen.GRUCell`, unmodified."""
    x = jax.ShapeDtypeStruct((input_size,), jax.dtypes.canonicalize_dtype(float))
    return from_flax(linen.GRUCell(hidden_size), x)


def _from_linen(module: linen.Module, example_input: Any, apply_kwargs: dict[str, Any]) -> Cell:
    _require_cell(module)
    shape = jax.numpy.shape(example_input)
    dtype = jax.numpy.result_type(example_input)

    def first_carry(key: Key) -> Any:
        return getattr(module, "initialize_carry")(key, shape)  # noqa: B009

    def variables(key: Key) -> Any:
        x = jax.numpy.zeros(shape, dtype)
        return module.init(key, first_carry(key), x, **apply_kwargs)

    collections = jax.eval_shape(variables, jax.random.key(0))
    kept = sorted(name for name in collections if name != "params")

    def init(key: Key) -> Any:
        return variables(key)["params"]

    def initial_carry() -> Any:
        key = jax.random.key(0)
        carry = first_carry(key)
        if not kept:
            return carry
        first = variables(key)
        return carry, {name: first[name] for name in kept}

    def step(params: Any, carry: Any, x: Any) -> tuple[Any, Array]:
        others: Any = {}
        if kept:
            carry, others = carry
        variables = {"params": params, **_without_gradient(others)}
        if not kept:
            result: Any = module.apply(variables, carry, x, **apply_kwargs)
            return result
        result, others = module.apply(variables, carry, x, mutable=kept, **apply_kwargs)
        carry, output = result
        return (carry, _without_gradient(others)), output

    def restart(carry: Any) -> Any:
        return first_carry(jax.random.key(0)), carry[1]

    return from_function(step, init, initial_carry)._replace(restart=restart if kept else None)


def _from_nnx(
    make: Callable[[nnx.Rngs], nnx.Module], example_input: Any, apply_kwargs: dict[str, Any]
) -> Cell:
    first = make(nnx.Rngs(0))
    _require_cell(first)
    # The graph is that of the cell as its own call leaves it: nothing in it depends on the key.
    graph, _, others = _split(first)
    has_others = bool(jax.tree.leaves(others))
    known = example_input is not None
    shape = jax.numpy.shape(example_input) if known else (getattr(first, "in_features"),)  # noqa: B009

    def init(key: Key) -> Any:
        return _split(make(nnx.Rngs(key)))[1]

    def initial_carry() -> Any:
        carry = getattr(first, "initialize_carry")(shape, rngs=nnx.Rngs(0))  # noqa: B009
        return (carry, others) if has_others else carry

    def step(params: Any, carry: Any, x: Any) -> tuple[Any, Array]:
        variables = others
        if has_others:
            carry, variables = carry
        variables = _without_gradient(variables)
        cell = nnx.merge(graph, params, variables)
        carry, output = cell(carry, x, **apply_kwargs)
        if has_others:
            carry = (carry, _without_gradient(_split(cell)[2]))
        return carry, output

    def restart(carry: Any) -> Any:
        return initial_carry()[0], carry[1]

    cell = from_function(step, init, initial_carry)
    return cell._replace(restart=restart if has_others else None)


def _require_cell(module: Any) -> None:
    for name in ("initialize_carry", "__call__"):
        if not hasattr(module, name):
            raise TypeError(f"{type(module).__name__} is no recurrent cell: it has no {name}")


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    """(graph, parameters, all other variables)."""
    parts: Any = nnx.split(module, nnx.Param, ...)
    graph, params, others = parts
    return graph, params, others


def _without_gradient(tree: Any) -> Any:
    """The floats of a tree cut off from differentiation."""
    return jax.tree.map(
        lambda x: (
            jax.lax.stop_gradient(x) if jax.numpy.issubdtype(x.dtype, jax.numpy.inexact) else x
        ),
        tree,
    )
