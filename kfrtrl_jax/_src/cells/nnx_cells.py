"""Recurrent cells of NNX, see `flax_cells.from_flax`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.flax_checks import require_cell, require_known
from kfrtrl_jax._src.cells.function import from_function, without_gradient


def from_nnx(
    make: Callable[[nnx.Rngs], nnx.Module],
    example_input: Any,
    cut: tuple[str, ...],
    apply_kwargs: dict[str, Any],
) -> Cell:
    """The cell of an NNX module, which `make` makes; the other arguments are those of `from_flax`."""
    first = make(nnx.Rngs(0))
    require_cell(first)
    # The graph of the cell before its first call does not depend on the key.
    graph, _, others = _split(first)
    has_others = bool(jax.tree.leaves(others))
    kinds = {
        type(variable).__name__
        for variable in jax.tree.leaves(others, is_leaf=_is_variable)
        if _is_variable(variable) and not isinstance(variable, nnx.RngState)
    }
    require_known(cut, sorted(kinds), "kind of variable")
    shape = _input_shape(first, example_input)

    def is_cut(variable: Any) -> bool:
        return _is_variable(variable) and type(variable).__name__ in cut

    def without_cut_gradients(state: Any) -> Any:
        return jax.tree.map(
            lambda v: without_gradient(v) if is_cut(v) else v, state, is_leaf=_is_variable
        )

    def init(key: Key) -> Any:
        return _split(make(nnx.Rngs(key)))[1]

    def initial_carry() -> Any:
        carry = getattr(first, "initialize_carry")(shape, rngs=nnx.Rngs(0))  # noqa: B009
        return (carry, others) if has_others else carry

    def step(params: Any, carry: Any, x: Any) -> tuple[Any, Array]:
        variables = others
        if has_others:
            carry, variables = carry
        cell = nnx.merge(graph, _copied(params), _copied(without_cut_gradients(variables)))
        carry, output = cell(carry, x, **apply_kwargs)
        new_graph, new_params, variables = _split(cell)
        _require_unchanged(first, graph == new_graph, params, new_params)
        if has_others:
            carry = (carry, without_cut_gradients(variables))
        return carry, output

    def restart(carry: Any) -> Any:
        fresh, _ = initial_carry()
        variables = jax.tree.map(
            lambda now, new: now if is_cut(now) or isinstance(now, nnx.RngState) else new,
            carry[1],
            others,
            is_leaf=_is_variable,
        )
        return fresh, variables

    cell = from_function(step, init, initial_carry)
    return cell._replace(restart=restart if has_others else None)


def _require_unchanged(module: Any, same_graph: bool, params: Any, new_params: Any) -> None:
    """Refuses changes that the next step would not see."""
    name = type(module).__name__
    if not same_graph:
        raise TypeError(
            f"a call of {name} adds a variable or changes an attribute that is not an array; keep "
            f"whatever changes in an nnx.Variable that __init__ makes"
        )
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(new_params)):
        if old is not new:
            raise TypeError(
                f"a call of {name} changes an nnx.Param; keep whatever a step changes in another kind "
                f"of nnx.Variable"
            )


def _input_shape(cell: nnx.Module, example_input: Any) -> tuple[int, ...]:
    """The shape of one lane's input."""
    if example_input is not None:
        return jax.numpy.shape(example_input)
    features = getattr(cell, "in_features", None)
    if not isinstance(features, int):
        raise ValueError(
            f"{type(cell).__name__} has no in_features that says the length of its input: give "
            f"example_input, one lane's input"
        )
    return (features,)


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    """(graph, parameters, all other variables), unaffected by later changes of the module."""
    parts: Any = nnx.split(module, nnx.Param, ...)
    graph, params, others = parts
    return graph, _copied(params), _copied(others)


def _copied(state: Any) -> Any:
    """The same arrays in new variables: Flax's split and merge share variables with the module."""
    return jax.tree.map(lambda leaf: leaf, state)
