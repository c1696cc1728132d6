"""Credit estimators: estimates of how a state affects future losses."""

from kfrtrl_jax._src.credit.dni import dni
from kfrtrl_jax._src.credit.registry import CREDIT, none

__all__ = ["CREDIT", "dni", "none"]
