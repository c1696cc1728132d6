"""Workarounds for the XLA compiler, each with its reason; none of them changes a result."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kfrtrl_jax._src import jax_internals

Array = jax.Array

# Terms up to this number are added one by one.
_FEW_TERMS = 64
_ROWS_AT_A_TIME = 8


def materialized(x: Array) -> Array:
    """`x`, written to memory by XLA before anything reads it.

    On CPUs XLA fuses cheap computations into loops that repeat them for every read, and drops
    optimization barriers before it does so. It considers a division expensive. The divisor is 1 (NaN
    where x is), which XLA cannot know.
    """
    return x / jnp.where(x == x, 1, x)


def norm(x: Array) -> Array:
    """The norm of each lane of x: [B, ...], accumulated in at least float32."""
    x = at_least_float32(x)
    # Rows first, in a separate sum: XLA would merge the two, and on CPUs the sum over a whole lane runs
    # on one thread.
    rows = materialized(jnp.sum(x * x, axis=-1))
    return jnp.sqrt(jnp.sum(rows, axis=tuple(range(1, rows.ndim))))


def sum_of_rows(x: Array) -> Array:
    """The sum of the rows of each matrix, [..., rows, columns], if a fused loop computes the matrices.

    On CPUs XLA sums anything but a single array or its squares in a scalar loop. A vectorized loop that
    adds several rows at a time leaves a smaller array to be summed.
    """
    rows = x.shape[-2]
    if rows % _ROWS_AT_A_TIME:
        return jnp.sum(x, axis=-2)
    parts = [x[..., i::_ROWS_AT_A_TIME, :] for i in range(_ROWS_AT_A_TIME)]
    return jnp.sum(materialized(sum(parts[1:], parts[0])), axis=-2)


def at_least_float32(x: Array) -> Array:
    """`x` in its own precision or in float32, whichever is higher: for sums of many terms."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def norm_of_tree(tree: Any) -> Array:
    """The norm of all numbers of a tree, in float32 at least: squares leave the range of float16."""
    norm: Array = optax.tree.norm(jax.tree.map(at_least_float32, tree))
    return norm


def sum_of_first(x: Array) -> Array:
    """The sum over the first axis, in one pass; XLA's own sum takes several times as long on CPUs."""
    if len(x) > _FEW_TERMS:
        return jnp.sum(x, axis=0)
    return sum(x[1:], x[0])


def weighted_sum_of_first(weights: Array, x: Array) -> Array:
    """sum_i weights_i x_i over the first axes, in one pass: XLA would write all the products first."""
    if len(x) > _FEW_TERMS:
        return jnp.sum(weights * x, axis=0)
    terms = [weights[i] * x[i] for i in range(len(x))]
    return sum(terms[1:], terms[0])


def in_place_if(condition: Array, change: Callable[[Any], Any], x: Any) -> Any:
    """change(x) if the condition holds, else x.

    A conditional would copy x even if the condition does not hold; a loop without iterations does not.
    """
    return jax.lax.while_loop(
        lambda state: state[0],
        lambda state: (jnp.zeros((), bool), change(state[1])),
        (condition, x),
    )[1]


def outer_sum(left: Array, right: Array) -> Array:
    """sum_t left_t right_t^T for [B, T, m] and [B, T, g]: [B, m, g].

    For a single term this avoids the matrix product library, which would take several times as long.
    The factors are written out first, or they would be computed once for every entry of the result.
    """
    if left.shape[1] == 1:
        return materialized(left)[:, 0, :, None] * materialized(right)[:, 0, None, :]
    return jnp.einsum("btm,btg->bmg", left, right)


# Otherwise XLA:CPU copies the influence at every step of a scan, as if it still had other readers.
_IN_PLACE = {"xla_cpu_copy_insertion_use_region_analysis": True}
# YNNPACK is faster for reductions and single products. For a batch of products of some hundred rows it
# uses one thread, where Eigen uses all.
_BATCHES_IN_EIGEN = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def jit(function: Callable[..., Any], *, donate_argnums: int | Sequence[int] = ()) -> FastestJit:
    """`jax.jit` with the compiler options that are fastest for most of the function's work.

    They change results by rounding errors alone. Backends other than the CPU have no such options.

    Args:
      function: any function of pytrees of arrays. Its first call decides the options for all calls.
      donate_argnums: as for `jax.jit`.
    """
    return FastestJit(function, donate_argnums)


class FastestJit:
    """A jitted function; see `jit`."""

    def __init__(self, function: Callable[..., Any], donate_argnums: int | Sequence[int]):
        self._function = function
        self._donate_argnums = donate_argnums
        self._jitted: Any = None

    def __call__(self, *args: Any) -> Any:
        """The function's result."""
        return self._choose(args)(*args)

    def lower(self, *args: Any) -> Any:
        """Like `lower` of a `jax.jit`: takes arrays, or their shapes alone."""
        return self._choose(args).lower(*args)

    def _choose(self, args: Sequence[Any]) -> Any:
        if self._jitted is None:
            jitted = functools.partial(jax.jit, self._function, donate_argnums=self._donate_argnums)
            # JAX caches the trace: the function is traced only once.
            traced = jitted().trace(*args).jaxpr.jaxpr
            batched, single = products(jax_internals.without_unused(traced))
            options = option_sets()["in Eigen" if batched > single else "in YNNPACK"]
            self._jitted = jitted(compiler_options=options)
        return self._jitted


@functools.cache
def option_sets() -> dict[str, dict[str, Any]]:
    """Compiler options by the library that computes products; empty on backends other than the CPU.

    XLA's options come and go between versions: only those known to this version are included.
    """
    return {
        "in YNNPACK": known(_IN_PLACE),
        "in Eigen": known({**_IN_PLACE, **_BATCHES_IN_EIGEN}),
    }


def products(jaxpr: Any) -> tuple[int, int]:
    """(multiplications in batches of matrix-matrix products, multiplications in all other products)."""
    counts = [0, 0]
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracting, batch = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            lanes, inner = (math.prod(left[a] for a in axes[0]) for axes in (batch, contracting))
            result = math.prod(equation.outvars[0].aval.shape)
            rows = math.prod(left) // max(1, lanes * inner)
            columns = result // max(1, lanes * rows)
            counts[not (lanes > 1 < rows and columns > 1)] += result * inner
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner_jaxpr in jax_internals.inner_jaxprs(equation.params):
            for i, count in enumerate(products(inner_jaxpr)):
                counts[i] += times * count
    return counts[0], counts[1]


def known(options: dict[str, Any]) -> dict[str, Any]:
    """The given CPU compiler options that this version of XLA has; empty on other backends."""
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    """Whether a program compiles with an option."""
    try:
        jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True
