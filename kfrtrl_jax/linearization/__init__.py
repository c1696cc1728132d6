"""From any cell's step to J and its Kronecker sites, found by reading the step's jaxpr."""

from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.linearization.explain import Cost, Explanation, explain
from kfrtrl_jax.linearization.linearizer import Linearizer, make_linearizer
from kfrtrl_jax.linearization.self_check import Check, check

__all__ = [
    "Check",
    "Cost",
    "Explanation",
    "Linearizer",
    "UnsupportedCellError",
    "check",
    "explain",
    "make_linearizer",
]
