"""Pytrees in which only some leaves have derivatives, and loops over steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array


def partition(tree: Any) -> tuple[Any, Any]:
    """The leaves that have derivatives, and the others; None stands in for the missing leaves."""
    inexact = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else None, tree)
    rest = jax.tree.map(lambda x: None if jnp.issubdtype(x.dtype, jnp.inexact) else x, tree)
    return inexact, rest


def combine(inexact: Any, rest: Any) -> Any:
    """The inverse of `partition`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, inexact, rest, is_leaf=lambda x: x is None
    )


def scaled(tree: Any, factor: float | Array) -> Any:
    """Every leaf times a number, in the leaf's own dtype."""
    return jax.tree.map(lambda x: (x * factor).astype(x.dtype), tree)


def add(left: Any, right: Any) -> Any:
    """The sum of two trees."""
    return jax.tree.map(jnp.add, left, right)


def scan(f: Callable[..., Any], init: Any, xs: Any, length: int) -> Any:
    """`jax.lax.scan`, without a loop if there is only one step."""
    if length > 1:
        return jax.lax.scan(f, init, xs)
    carry, y = f(init, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda leaf: leaf[None], y)


def repeated(names: Sequence[str]) -> str | None:
    """The first name that stands there for a second time; None if all are different."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
