"""Credit estimators by their names in configs."""

from collections.abc import Callable

from kfrtrl_jax._src.base import CreditEstimator
from kfrtrl_jax._src.credit.dni import dni


def none() -> None:
    """No credit: the gradient of a segment ignores the time after it."""


CREDIT: dict[str, Callable[..., CreditEstimator | None]] = {"none": none, "dni": dni}
