"""What several estimators use: random signs, and scales that give two factors equal norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Key, Structure
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.matrices import materialized

# Lanes up to this number are added one by one.
_FEW_LANES = 64

# What needs no structure of a cell beyond that it can be differentiated.
UNSTRUCTURED = (
    "rtrl", "uoro", "nobacktrack", "reverse_kf_rtrl", "forward_gradient", "snap", "sketched", "kernl",
    "truncated",
)  # fmt: skip


def random_signs(key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Independent fair signs."""
    return jax.random.rademacher(key, shape, dtype)


def require_products(structure: Structure, estimator: str) -> None:
    """Refuses a cell with parameters that enter its step in no product or sum with data.

    Raises:
      UnsupportedCellError: with the operation, the parameter and the line.
    """
    if structure.problems:
        more = len(structure.problems) - 1
        also = f" (and {more} more)" if more else ""
        raise UnsupportedCellError(
            f"{estimator} cannot use this cell: {structure.problems[0]}{also}; estimators that take "
            f"any differentiable cell: {', '.join(UNSTRUCTURED)}"
        )


def balance(first: Array, second: Array) -> tuple[Array, Array]:
    """Scales p and 1/p that give two factors of a product the same norm.

    Where either norm is 0 so is the product, and both scales are 0: the limit, instead of 0/0.

    Args:
      first: [...], the norm of the one factor.
      second: [...], the norm of the other.
    """
    present = (first > 0) & (second > 0)
    ratio = jnp.where(present, second, 1) / jnp.where(present, first, 1)
    scale = jnp.sqrt(ratio)
    return jnp.where(present, scale, 0), jnp.where(present, 1 / scale, 0)


def norm(x: Array) -> Array:
    """The norm of each lane of x: [B, ...], accumulated in at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Rows first, in a sum of their own: XLA makes one sum of two, and on CPUs that of a whole lane runs
    # on one thread.
    rows = materialized(jnp.sum(x * x, axis=-1))
    return jnp.sqrt(jnp.sum(rows, axis=tuple(range(1, rows.ndim))))


def joint_norm(norms: Sequence[Array]) -> Array:
    """The norm of a vector given those of its parts."""
    return jnp.sqrt(sum((x * x for x in norms[1:]), norms[0] * norms[0]))


def factor_norms(**factors: Sequence[Any]) -> dict[str, Array]:
    """Named means over lanes of the norms of factors that every site has, each a pytree of [B, ...]."""
    return {
        f"{name}_norm_{i}": jnp.mean(joint_norm([norm(x) for x in jax.tree.leaves(factor)]))
        for name, of_sites in factors.items()
        for i, factor in enumerate(of_sites)
    }


def exact_einsum(subscripts: str, x: Array, y: Array) -> Array:
    """An einsum of full precision, for small matrices that decide over large ones."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(subscripts, x, y, precision="highest", preferred_element_type=dtype)


def sum_of_lanes(x: Array) -> Array:
    """The sum over the first axis, in one pass: XLA's own on CPUs takes several times as long."""
    if len(x) > _FEW_LANES:
        return jnp.sum(x, axis=0)
    return sum(x[1:], x[0])
