"""From any cell's step to J and its Kronecker sites, found by reading the step's jaxpr."""

from kfrtrl_jax.linearization.linearizer import Linearizer, make_linearizer

__all__ = ["Linearizer", "make_linearizer"]
