"""Linearization: J and the Kronecker sites of any cell's step, found by reading its jaxpr."""

from kfrtrl_jax._src.composition import compose
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.linearization.explain import Cost, Explanation, explain
from kfrtrl_jax._src.linearization.linearizer import Linearizer, make_linearizer
from kfrtrl_jax._src.linearization.self_check import Check, check

__all__ = [
    "Check",
    "Cost",
    "Explanation",
    "Linearizer",
    "UnsupportedCellError",
    "check",
    "compose",
    "explain",
    "make_linearizer",
]
