"""Sizes of pytrees."""

from __future__ import annotations

import math
from typing import Any

import jax


def bytes_of(tree: Any) -> int:
    """The memory of the arrays of a pytree, or of their shapes, in bytes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
