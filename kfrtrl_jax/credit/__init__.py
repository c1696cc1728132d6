"""Estimates of what a state does to the losses that are yet to come, a file each."""

from collections.abc import Callable

from kfrtrl_jax.base import CreditEstimator
from kfrtrl_jax.credit.dni import dni


def none() -> None:
    """No credit: nothing of a segment's gradient comes from the time after it."""


CREDIT: dict[str, Callable[..., CreditEstimator | None]] = {"none": none, "dni": dni}

__all__ = ["CREDIT", "dni", "none"]
