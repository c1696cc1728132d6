"""Random points at which a cell's linearization is compared with JAX's differentiation of it.

What is drawn is drawn before the cell is called, in double precision if the cell allows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Cell
from kfrtrl_jax._src.lanes import initial_lanes, is_key
from kfrtrl_jax._src.linearization.complex_numbers import real_leaves

# The first lane continues from where a few steps led, the second from near that point; the others are
# at the cell's initial state.
LANES = 4
# Sizes of the cotangents; a large one reveals derivative rules that are linear only for small ones.
_SIZES = (1.0, 100.0, 1.0, 1.0)
STEPS = 3


class Draws(NamedTuple):
    """The random numbers of a check, drawn before the cell is called.

    Attributes:
      inputs: [T, B, ...].
      cotangents: of the new state, [B, n].
      parameters: for each float leaf of the parameters, its change from the initial value: a factor and
        an addend.
      carry: for each float leaf of the carry [B, ...], the same.
      outputs: the weights of the real leaves of the output in the segment's loss.
      last: the weights of the real leaves of the last carry in it.
    """

    inputs: Any
    cotangents: Any
    parameters: Any
    carry: Any
    outputs: Any
    last: Any


class Points(NamedTuple):
    """The points of comparison: parameters, carry [B, ...], inputs [T, B, ...], reset [T, B]."""

    params: Any
    carry: Any
    inputs: Any
    reset: Any


def floats_of(tree: Any) -> tuple[list[Any], Any]:
    """The float leaves, and a function that puts such leaves back into the tree."""
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.inexact)]

    def join(floats: Sequence[Any]) -> Any:
        whole = list(leaves)
        for i, x in zip(places, floats):
            whole[i] = x
        return jax.tree.unflatten(treedef, whole)

    return [leaves[i] for i in places], join


def widened(leaf: Any) -> Any:
    """An array, or its shape and dtype, in double precision."""
    leaf = _array(leaf)
    dtype = leaf.dtype
    if jnp.issubdtype(dtype, jnp.inexact):
        dtype = np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, dtype)
    return leaf if dtype == leaf.dtype else leaf.astype(dtype)


def in_double(cell: Cell, example_input: Any) -> Cell | None:
    """The cell in double precision; None if the cell or the device does not support that."""
    if jax.default_backend() not in ("cpu", "gpu"):
        return None
    wide = cell._replace(
        init=lambda key: jax.tree.map(widened, cell.init(key)),
        initial_carry=lambda: jax.tree.map(widened, cell.initial_carry()),
    )

    def types(tree: Any) -> list[Any]:
        return [leaf.dtype for leaf in jax.tree.leaves(tree)]

    def one_step() -> tuple[Any, Any]:
        carry = wide.initial_carry()
        x = jax.tree.map(lambda leaf: _zeros(widened(leaf)), example_input)
        return carry, wide.step(wide.init(jax.random.key(0)), carry, x)[0]

    with jax.enable_x64(True):
        try:
            before, after = jax.eval_shape(one_step)
        except Exception:
            return None  # in its own precision the cell raises its own error
    return wide if types(before) == types(after) else None


def _array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)


def draw(cell: Cell, example_input: Any, generator: np.random.Generator) -> Draws:
    def normal(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        values = generator.normal(size=shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            values = values + 1j * generator.normal(size=shape)
        return values.astype(dtype)

    def change(leaf: Any) -> tuple[np.ndarray, np.ndarray]:
        factor = 1 + 0.1 * normal(leaf.shape, leaf.dtype)
        addend = 0.01 * normal(leaf.shape, leaf.dtype)
        # NumPy computes with bfloat16 in more bits.
        return factor.astype(leaf.dtype), addend.astype(leaf.dtype)

    def an_input(leaf: Any) -> Any:
        shape = (STEPS, LANES, *leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return normal(shape, leaf.dtype)
        if is_key(leaf):
            return jnp.broadcast_to(jax.random.key(0), shape)
        return generator.integers(0, 2, shape).astype(leaf.dtype)

    example = jax.tree.map(widened if _is_wide() else _array, example_input)
    params, lanes, output = jax.eval_shape(
        lambda: (
            params := cell.init(jax.random.key(0)),
            initial_lanes(cell, LANES),
            cell.step(params, cell.initial_carry(), jax.tree.map(jnp.zeros_like, example))[1],
        )
    )
    floats = floats_of(lanes)[0]
    parts = _real_shapes(lanes)
    n = sum(math.prod(x.shape[1:]) for x in parts)
    cotangents = normal((LANES, n), jnp.result_type(*(x.dtype for x in parts)))
    return Draws(
        inputs=jax.tree.map(an_input, example),
        cotangents=cotangents * np.asarray(_SIZES, cotangents.dtype)[:, None],
        parameters=[change(x) for x in floats_of(params)[0]],
        carry=[change(x) for x in floats],
        outputs=[normal(x.shape, x.dtype) for x in _real_shapes(output)],
        last=[normal(x.shape[1:], x.dtype) for x in parts],
    )


def _is_wide() -> bool:
    return jnp.zeros(()).dtype == np.float64


def _real_shapes(tree: Any) -> list[Any]:
    leaves = jax.eval_shape(lambda: real_leaves(jax.tree.map(_zeros, tree)))
    return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]


def _zeros(leaf: Any) -> Any:
    return leaf if is_key(leaf) else jnp.zeros(leaf.shape, leaf.dtype)


def _changed(tree: Any, changes: Sequence[tuple[Any, Any]]) -> Any:
    floats, join = floats_of(tree)
    return join([factor * x + addition for x, (factor, addition) in zip(floats, changes)])


def points_of(cell: Cell, seed: int, draws: Draws) -> Points:
    """Parameters near the initial ones; carries that they lead to, or near that, or initial ones."""
    params = _changed(cell.init(jax.random.key(seed)), draws.parameters)
    first = initial_lanes(cell, LANES)

    def step(carry: Any, x: Any) -> tuple[Any, None]:
        return jax.vmap(lambda c, x: cell.step(params, c, x)[0])(carry, x), None

    last, _ = jax.lax.scan(step, first, draws.inputs)
    carry = jax.tree.map(
        lambda first, last, beside: jnp.stack([last[0], beside[1], *first[2:]]),
        first,
        last,
        _changed(last, draws.carry),
    )
    reset = np.zeros((STEPS, LANES), bool)
    reset[1, 1] = True
    return Points(params, carry, draws.inputs, jnp.asarray(reset))
