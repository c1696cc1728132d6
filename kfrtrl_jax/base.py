"""The types that the whole library shares."""

from kfrtrl_jax._src.base import (
    Array,
    Batch,
    Carry,
    Cell,
    CreditEstimator,
    InfluenceEstimator,
    Key,
    Linearization,
    Mask,
    Params,
    Site,
    SiteGradients,
    SiteJacobian,
    Structure,
    Task,
)

__all__ = [
    "Array",
    "Batch",
    "Carry",
    "Cell",
    "CreditEstimator",
    "InfluenceEstimator",
    "Key",
    "Linearization",
    "Mask",
    "Params",
    "Site",
    "SiteGradients",
    "SiteJacobian",
    "Structure",
    "Task",
]
