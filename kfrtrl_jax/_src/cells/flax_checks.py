"""What is checked of cells of both kinds of Flax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def require_cell(module: Any) -> None:
    """Refuses a module that is not a recurrent cell."""
    for name in ("initialize_carry", "__call__"):
        if not hasattr(module, name):
            raise TypeError(f"{type(module).__name__} is not a recurrent cell: it has no {name}")


def require_known(cut: tuple[str, ...], names: Sequence[str], what: str) -> None:
    """Refuses names that the cell does not have."""
    for name in cut:
        if name not in names:
            there = ", ".join(names) or "none"
            raise ValueError(f'cut names "{name}", but the cell has no such {what}; it has {there}')
