"""Sums over lanes, group by group, for lanes that are spread over devices.

A gradient has several parts, each a sum over lanes. Every part is summed over each of P groups of lanes
first, [P, m, g], then the parts are added, and the groups last. With as many groups as devices, each
device adds up its own lanes, and the whole gradient crosses between them once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src.base import Array, SiteGradients

GroupedGradients = tuple[Float[Array, "P _m _g"], ...]


def grouped(summed: Callable[..., Any], axes: tuple[Any, ...], groups: int) -> Callable[..., Any]:
    """A function that sums over lanes, as one that has a leading axis of groups in its results.

    Args:
      summed: (pytrees of arrays with axes of lanes) -> a pytree of sums over lanes.
      axes: for each argument the axis of the lanes in its arrays, -1 for those without lanes: a pytree
        like the argument, or a number for all of them.
      groups: of consecutive lanes, equally large.
    """
    if groups == 1:
        return lambda *arguments: jax.tree.map(lambda x: x[None], summed(*arguments))

    def of_groups(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        of_leaves: list[int] = []
        jax.tree.map(
            lambda axis, part: of_leaves.extend([axis] * len(jax.tree.leaves(part))),
            axes,
            arguments,
        )
        apart = [_apart(x, axis, groups) for x, axis in zip(leaves, of_leaves, strict=True)]
        return jax.vmap(
            lambda own: summed(*jax.tree.unflatten(structure, own)),
            in_axes=([None if axis < 0 else axis for axis in of_leaves],),
        )(apart)

    return of_groups


def together(sites: GroupedGradients) -> SiteGradients:
    """The sums over groups: for every site, [m, g]."""
    return tuple(x[0] if len(x) == 1 else jnp.sum(x, axis=0) for x in sites)


def _apart(x: Array, axis: int, groups: int) -> Array:
    if axis < 0:
        return x
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
