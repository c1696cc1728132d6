"""Estimates of what a state does to the losses that are yet to come, a file each."""

from kfrtrl_jax._src.credit.dni import dni
from kfrtrl_jax._src.credit.registry import CREDIT, none

__all__ = ["CREDIT", "dni", "none"]
