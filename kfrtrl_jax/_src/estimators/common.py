"""Shared parts of estimators: random signs, norms, and scales that give two factors equal norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Array, Key, SiteJacobian, Structure
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.xla import at_least_float32, norm

# Estimators that take any differentiable cell.
UNSTRUCTURED = (
    "rtrl", "uoro", "nobacktrack", "reverse_kf_rtrl", "forward_gradient", "snap", "sketched", "kernl",
    "truncated",
)  # fmt: skip


def random_signs(key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Independent fair signs."""
    return jax.random.rademacher(key, shape, dtype)


def term_signs(sites: Sequence[SiteJacobian], key: Key) -> list[Array]:
    """Independent fair signs for every term of every site: [B, T] for every site."""
    counts = [site.derivatives.count for site in sites]
    like = sites[0].inputs
    signs = random_signs(key, (sum(counts), len(like)), like.dtype)
    return [part.T for part in jnp.split(signs, np.cumsum(counts)[:-1])]


def require_products(structure: Structure, estimator: str) -> None:
    """Refuses a cell with a parameter that enters its step other than by a product or sum with data.

    Raises:
      UnsupportedCellError: naming the operation, the parameter and the line.
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

    If either norm is 0, so is the product; both scales are then 0, the limit, instead of 0/0.

    Args:
      first: [...], the norm of the first factor.
      second: [...], the norm of the second factor.
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

    Bounded below by its rounding error, so that it is 0 only if all terms are 0, even if they cancel.
    """
    sizes = term_norms(left) * term_norms(right)
    if left.shape[1] == 1:
        return sizes[:, 0]
    products = [exact_einsum("bsi,bti->bst", x, x) for x in (left, right)]
    square = jnp.sum(products[0] * products[1], axis=(1, 2))
    return jnp.sqrt(jnp.maximum(square, jnp.finfo(square.dtype).eps * jnp.sum(sizes**2, axis=1)))


def factor_norms(**factors: Sequence[Any]) -> dict[str, Array]:
    """Mean norms over lanes, named by factor and site; a factor is a pytree of [B, ...] per site."""
    return {
        f"{name}_norm_{i}": jnp.mean(joint_norm([norm(x) for x in jax.tree.leaves(factor)]))
        for name, of_sites in factors.items()
        for i, factor in enumerate(of_sites)
    }


def exact_einsum(subscripts: str, x: Array, y: Array) -> Array:
    """An einsum in full precision, for small matrices whose errors would spread to large ones."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(subscripts, x, y, precision="highest", preferred_element_type=dtype)
