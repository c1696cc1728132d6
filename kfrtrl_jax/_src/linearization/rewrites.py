"""Rewrites of operations in which parameters meet data: as sums and single products.

Each function takes an equation of a jaxpr and returns a function of its inputs with the same outputs,
that replaces it, or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax._src.linearization.program import Role

# A parameter is followed into at most this many operations within a step: those in the iterations of a
# scan count one by one. Past it what uses the parameter is differentiated as a whole.
MAX_USES = 64

Simpler = Callable[..., Any] | None


def simpler(eqn: Any, roles: Sequence[Role]) -> Simpler:
    """What is read in the place of an equation in which parameters meet data.

    Args:
      eqn: the equation.
      roles: of its inputs.
    """
    name = eqn.primitive.name
    if name == "dot_general":
        return _block_diagonal_product(eqn, roles.index(Role.DATA))
    if name in ("gather", "dynamic_slice") and roles[0] is Role.PARAMETER:
        return _look_up(eqn)
    if name in ("add", "sub", "mul", "div"):
        return _sum_or_product(eqn, roles)
    if name == "concatenate":
        return _sum_of_parts(eqn)
    if name == "select_n":
        return _sum_of_cases(eqn, roles)
    return None


def scan_sizes(eqn: Any) -> tuple[int, int, int]:
    """(number of constants, of carried values, of scanned values) among the inputs of a scan."""
    body = jax_internals.closed(eqn.params["jaxpr"]).jaxpr

    # Which operands and results are scanned over is inferred from their additional axis: the parameters
    # that say so have other names in other versions of JAX.
    def count_scanned(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        return sum(v.aval.ndim > a.aval.ndim for v, a in zip(outer, inner))

    num_carry = len(eqn.outvars) - count_scanned(eqn.outvars, body.outvars)
    num_xs = count_scanned(eqn.invars, body.invars)
    return len(eqn.invars) - num_carry - num_xs, num_carry, num_xs


def parts(values: Sequence[Any], counts: tuple[int, int, int]) -> tuple[list[Any], ...]:
    """(constants, carried values, scanned values) of the inputs of a scan."""
    consts, carry, _ = counts
    values = list(values)
    return values[:consts], values[consts : consts + carry], values[consts + carry :]


def iterations(eqn: Any) -> Callable[..., Any]:
    """A scan as its iterations one after another."""
    body = jax_internals.as_function(eqn.params["jaxpr"])
    length, reverse = eqn.params["length"], eqn.params["reverse"]
    counts = scan_sizes(eqn)
    num_carry = counts[1]

    def unrolled(*values: Any) -> Any:
        consts, carry, xs = parts(values, counts)
        ys: list[Any] = [None] * length
        for i in reversed(range(length)) if reverse else range(length):
            result = body(*consts, *carry, *(jax.lax.index_in_dim(x, i, 0, False) for x in xs))
            carry, ys[i] = list(result[:num_carry]), result[num_carry:]
        return [*carry, *(jnp.stack(column) for column in zip(*ys))]

    return unrolled


def scan_of(eqn: Any, body: Callable[..., Sequence[Any]]) -> Callable[..., Any]:
    """A scan with another body: a function of the old one's inputs to its outputs, flat."""
    counts = scan_sizes(eqn)
    num_carry = counts[1]

    def scan(*values: Any) -> Any:
        consts, start, scanned = parts(values, counts)

        def one(carry: Sequence[Any], xs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
            results = list(body(*consts, *carry, *xs))
            return results[:num_carry], results[num_carry:]

        carry, ys = jax.lax.scan(
            one,
            start,
            scanned,
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
        )
        return [*carry, *ys]

    return scan


def _block_diagonal_product(eqn: Any, data: int) -> Simpler:
    """A product of several matrices of parameters, each with vectors of its own, as one product.

    The heads of a block-diagonal weight are one matrix with blocks on its diagonal and zeros elsewhere.
    """
    contracting, batch = ((axes[1 - data], axes[data]) for axes in eqn.params["dimension_numbers"])
    weight_shape, data_shape = (eqn.invars[i].aval.shape for i in (1 - data, data))
    weight_free, data_free = (
        [i for i in range(len(shape)) if i not in (*contracting[side], *batch[side])]
        for side, shape in enumerate((weight_shape, data_shape))
    )
    matrices = math.prod(weight_shape[i] for i in batch[0])
    if matrices <= 1:
        return None
    vectors = math.prod(data_shape[i] for i in data_free)
    rows = math.prod(weight_shape[i] for i in contracting[0])
    result = eqn.outvars[0].aval

    def product(*operands: Any) -> Any:
        w = operands[1 - data].transpose(*batch[0], *contracting[0], *weight_free)
        v = operands[data].transpose(*data_free, *batch[1], *contracting[1])
        z = v.reshape(vectors, -1) @ _block_diagonal(w.reshape(matrices, rows, -1))
        z = z.reshape(vectors, matrices, -1)
        # dot_general puts the batch axes first, then the free axes of its left operand.
        z = z.transpose((1, 2, 0) if data == 1 else (1, 0, 2))
        return z.reshape(result.shape).astype(result.dtype)

    return product


def _block_diagonal(blocks: Any) -> Any:
    """[blocks * rows, blocks * columns] of blocks [blocks, rows, columns]."""
    count, rows, columns = blocks.shape
    here = jnp.eye(count, dtype=blocks.dtype)[:, None, :, None]
    return (blocks[:, :, None, :] * here).reshape(count * rows, count * columns)


def _sum_or_product(eqn: Any, roles: Sequence[Role]) -> Simpler:
    """Sums and products of two arrays of one shape; differences and quotients as these."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    parameters_first = roles[0] is Role.PARAMETER
    if any(v.aval.shape != shape for v in eqn.invars):

        def spread(*operands: Any) -> Any:
            values = [jnp.broadcast_to(x, shape) for x in operands]
            return eqn.primitive.bind(*values, **eqn.params)

        return spread
    if name == "sub" and parameters_first:
        return lambda parameters, data: -data + parameters
    if name == "div" and not parameters_first:
        return lambda data, parameters: data * (1 / parameters)
    if name == "div":
        return lambda parameters, data: parameters * (1 / data)
    return None


def _sum_of_parts(eqn: Any) -> Callable[..., Any]:
    """A concatenation as the sum of its parts, each with zeros around it."""
    axis = eqn.params["dimension"]
    sizes = [v.aval.shape[axis] for v in eqn.invars]

    def padded(*parts: Any) -> Any:
        before, result = 0, None
        for part, size in zip(parts, sizes):
            widths = [(0, 0)] * part.ndim
            widths[axis] = (before, sum(sizes) - before - size)
            placed = jnp.pad(part, widths)
            result = placed if result is None else result + placed
            before += size
        return result

    return padded


def _sum_of_cases(eqn: Any, roles: Sequence[Role]) -> Simpler:
    """A choice between parameters and data as a sum: parameters times a mask, data where chosen."""
    if roles[0] is Role.PARAMETER:
        return None
    shape, dtype = eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype

    def chosen(which: Any, *cases: Any) -> Any:
        result = jnp.zeros(shape, dtype)
        for i, (case, role) in enumerate(zip(cases, roles[1:])):
            here = jnp.broadcast_to(which == i, shape)
            if role is Role.PARAMETER:
                result = result + case * here.astype(dtype)
            else:
                result = result + jnp.where(here, case, 0)
        return result

    return chosen


def _look_up(eqn: Any) -> Simpler:
    """A row of a table of parameters, chosen by data, as the product with a one-hot vector."""
    table = eqn.invars[0].aval
    result = eqn.outvars[0].aval
    if table.ndim == 0 or not jnp.issubdtype(table.dtype, jnp.inexact):
        return None
    sizes = tuple(eqn.params["slice_sizes"])
    if sizes != (1, *table.shape[1:]) or math.prod(result.shape) != math.prod(sizes):
        return None
    outside = None
    if eqn.primitive.name == "gather":
        numbers = eqn.params["dimension_numbers"]
        if tuple(numbers.start_index_map) != (0,) or tuple(numbers.operand_batching_dims):
            return None
        if eqn.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP:
            outside = jnp.nan if eqn.params["fill_value"] is None else eqn.params["fill_value"]

    def row(values: Any, *indices: Any) -> Any:
        index = indices[0].reshape(())
        kept = jnp.clip(index, 0, table.shape[0] - 1)
        chosen = jax.nn.one_hot(kept, table.shape[0], dtype=table.dtype)
        z = (chosen @ values.reshape(table.shape[0], -1)).reshape(result.shape)
        return z if outside is None else jnp.where(kept == index, z, jnp.asarray(outside, z.dtype))

    return row
