"""Checks of shapes and sizes at the entrances of public functions: one-line errors, by chex."""

from __future__ import annotations

from typing import Any, NoReturn

import chex
import jax
import jax.numpy as jnp

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.lanes import is_key, is_raw_key


def require_shape(name: str, x: Any, *shape: int | str, hint: str = "") -> None:
    """Refuses an array of another shape.

    Args:
      name: of the array, for the message.
      x: the array.
      *shape: the length of each axis; a letter stands for any length.
      hint: what to do about it.

    Raises:
      ValueError: with the shape given and the shape that is right.
    """
    try:
        chex.assert_shape(x, tuple(None if isinstance(size, str) else size for size in shape))
    except AssertionError:
        _refuse(name, f"have shape {_listed(shape)}", x, hint)


def require_leading_axes(name: str, tree: Any, *axes: int, hint: str = "") -> None:
    """Refuses a pytree with an array that does not have these leading axes.

    Args:
      name: of the pytree, for the message.
      tree: the pytree.
      *axes: their lengths.
      hint: what to do about it.

    Raises:
      ValueError: with the shape of the first such array and the leading axes that are right.
    """
    for leaf in map(jnp.asarray, jax.tree.leaves(tree)):
        try:
            chex.assert_tree_shape_prefix(leaf, axes)
        except AssertionError:
            _refuse(name, f"have the leading axes {_listed(axes)}", leaf, hint)


def require_key(name: str, key: Any) -> None:
    """Refuses anything but a single PRNG key, typed or raw.

    Raises:
      ValueError: with the shape and type given.
    """
    x = key if hasattr(key, "dtype") else jnp.asarray(key)
    own_axes = 0 if is_key(x) else 1
    if not (is_key(x) or is_raw_key(x)) or x.ndim != own_axes:
        _refuse(name, "be a single PRNG key, such as jax.random.key(0)", x, "")


def require_positive(**values: float) -> None:
    """Refuses numbers below 1.

    Raises:
      ValueError: naming the first of them.
    """
    bounds.require("[1, inf)", **values)


def _listed(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _refuse(name: str, rule: str, x: Any, hint: str) -> NoReturn:
    got = f"{jnp.result_type(x)}{list(jnp.shape(x))}"
    raise ValueError(f"{name} must {rule}, got {got}{f'; {hint}' if hint else ''}") from None
