"""Cells that read tokens."""

from __future__ import annotations

from typing import Any

import jax

from kfrtrl_jax._src.base import Array, Cell
from kfrtrl_jax._src.shapes import require_shape


def on_tokens(cell: Cell, vocabulary_size: int) -> Cell:
    """The cell with its input x one-hot encoded from an integer token in [0, vocabulary_size).

    Any other integer, such as -1, is read as no token: a vector of zeros.
    """

    def step(params: Any, carry: Any, token: Array) -> tuple[Any, Array]:
        require_shape("the token", token, hint="a cell is a function of one lane")
        return cell.step(params, carry, jax.nn.one_hot(token, vocabulary_size))

    return cell._replace(step=step)
