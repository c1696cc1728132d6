"""What several estimators use: random signs, and scales that give two factors equal norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Array, Key, SiteJacobian, Structure
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.xla import at_least_float32, norm

# What needs no structure of a cell beyond that it can be differentiated.
UNSTRUCTURED = (
    "rtrl", "uoro", "nobacktrack", "reverse_kf_rtrl", "forward_gradient", "snap", "sketched", "kernl",
    "truncated",
)  # fmt: skip


def random_signs(key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Independent fair signs."""
    return jax.random.rademacher(key, shape, dtype)


def term_signs(sites: Sequence[SiteJacobian], key: Key) -> list[Array]:
    """Independent fair signs for every term of every site: for every site [B, T]."""
    counts = [site.derivatives.count for site in sites]
    like = sites[0].inputs
    signs = random_signs(key, (sum(counts), len(like)), like.dtype)
    return [part.T for part in jnp.split(signs, np.cumsum(counts)[:-1])]


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


def joint_norm(norms: Sequence[Array]) -> Array:
    """The norm of a vector given those of its parts."""
    return jnp.sqrt(sum((x * x for x in norms[1:]), norms[0] * norms[0]))


def term_norms(x: Array) -> Array:
    """The norm of each vector of x: [B, T, m], giving [B, T], accumulated in at least float32."""
    return jnp.sqrt(jnp.sum(at_least_float32(x) ** 2, axis=-1))


def norm_of_outer_sum(left: Array, right: Array) -> Array:
    """|sum_t left_t right_t^T|_F for [B, T, m] and [B, T, g], by inner products: [B].

    No less than what rounding leaves of it where the terms cancel: 0 only where all of them are 0.
    """
    sizes = term_norms(left) * term_norms(right)
    if left.shape[1] == 1:
        return sizes[:, 0]
    products = [exact_einsum("bsi,bti->bst", x, x) for x in (left, right)]
    square = jnp.sum(products[0] * products[1], axis=(1, 2))
    return jnp.sqrt(jnp.maximum(square, jnp.finfo(square.dtype).eps * jnp.sum(sizes**2, axis=1)))


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
