"""The result of a cell's step, by shapes and types alone, and what is wrong with one in words."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Cell

# JAX's own errors about arrays that do not fit together.
_DO_NOT_FIT = re.compile(
    "dot_general|broadcast|contracting|concatenate|conv_general|Incompatible|reshape|iterate|ndim"
)


def shown(tree: Any) -> str:
    """The shapes and types of the arrays in a pytree, "float32[8]" or "(float32[8], float32[8])"."""
    leaves, structure = jax.tree.flatten(tree)
    text = [f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for leaf in leaves]
    if jax.tree_util.treedef_is_leaf(structure):
        return text[0]
    return str(jax.tree.unflatten(structure, map(_Bare, text)))


def signature(tree: Any) -> tuple[Any, tuple[str, ...]]:
    """The structure of a pytree, and the types and shapes of its leaves."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(map(shown, leaves))


def require_result(params: Any, carry: Any, result: Any) -> tuple[Any, Any]:
    """The result of a step, (new carry, output), if the new carry is like the old one.

    Args:
      params: that the step was taken with.
      carry: before the step.
      result: what the step returned.

    Raises:
      ValueError: in one line, with the remedy.
    """
    if signature(result) == signature(carry):
        raise ValueError(
            f"a cell's step must return (carry, output), and this one returns the carry alone, "
            f"{shown(carry)}; if the carry is also the output, return (carry, carry)"
        )
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ValueError(f"a cell's step must return (carry, output), got {shown(result)}")
    new, output = result
    if signature(carry) == signature(new):
        return new, output
    changed = f"{shown(carry)} became {shown(new)}"
    if _in_double(new) and not (_in_double(params) and _in_double(carry)):
        raise ValueError(
            f"a cell's step must keep the carry's structure, shapes and types: {changed}, as "
            f"jax_enable_x64 is on and the cell is in float32; make the cell in float64 (param_dtype= "
            f"in Flax, dtype= in Equinox), or give it inputs in float32"
        )
    raise ValueError(f"a cell's step must keep the carry's structure, shapes and types: {changed}")


def output_shapes(cell: Cell, params: Any, carry: Any, example_input: Any) -> Any:
    """The shapes and types of a step's output, for one lane.

    Args:
      cell: for one lane.
      params: its parameters, or their shapes and types.
      carry: likewise.
      example_input: likewise.

    Raises:
      ValueError: if arrays in the step do not fit together, or its result is not as it should be.
    """
    try:
        result = jax.eval_shape(cell.step, params, carry, example_input)
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError) or not _DO_NOT_FIT.search(str(error)):
            raise
        raise ValueError(
            f"the cell's step fails on the input of one lane, {shown(example_input)}, with the carry "
            f"{shown(carry)}: {str(error).strip().splitlines()[0]}"
        ) from error
    return require_result(params, carry, result)[1]


def require_one_lane(cell: Cell, example_input: Any, batch_size: int) -> None:
    """Refuses a cell that is written for a batch, or an example input with an axis of lanes.

    Such a cell carries [B, ...] and also works, or works only, for the input of B lanes.

    Raises:
      ValueError: saying which of the two it is.
    """
    params = jax.eval_shape(cell.init, jax.random.key(0))
    carry = jax.eval_shape(cell.initial_carry)
    x = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), example_input
    )
    if not all(_has_lanes(leaf, batch_size, 2) for leaf in jax.tree.leaves(carry)):
        return
    lane, one = _without_axis(carry), _without_axis(x)
    has_lanes = all(_has_lanes(leaf, batch_size, 1) for leaf in jax.tree.leaves(x))
    if has_lanes and _works(cell, params, lane, one):
        raise ValueError(
            f"example_input must be the input of one lane, {shown(one)}, without the batch axis, got "
            f"{shown(x)}"
        )
    together = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch_size, *a.shape), a.dtype), x)
    if _works(cell, params, lane, x) or (
        not _works(cell, params, carry, x) and _works(cell, params, carry, together)
    ):
        raise ValueError(
            f"the cell is written for a batch: its carry, {shown(carry)}, has the batch axis; a cell "
            f"is a function of one lane, whose carry is {shown(lane)}, and the learner maps it over "
            f"the lanes"
        )


class _Bare:
    """A text that is its own `repr`."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _in_double(tree: Any) -> bool:
    types = map(jnp.result_type, jax.tree.leaves(tree))
    floats = [dtype for dtype in types if jnp.issubdtype(dtype, jnp.inexact)]
    return bool(floats) and all(jnp.finfo(dtype).bits == 64 for dtype in floats)


def _has_lanes(leaf: Any, batch_size: int, least: int) -> bool:
    return len(leaf.shape) >= least and leaf.shape[0] in (1, batch_size)


def _without_axis(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)


def _works(cell: Cell, params: Any, carry: Any, x: Any) -> bool:
    """Whether a step can be taken, and keeps the carry."""
    try:
        require_result(params, carry, jax.eval_shape(cell.step, params, carry, x))
    except Exception:
        return False
    return True
