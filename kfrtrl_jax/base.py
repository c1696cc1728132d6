"""The types that everything else is made of."""

from kfrtrl_jax._src.base import (
    Array,
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
    SiteShape,
    Structure,
)

__all__ = [
    "Array",
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
    "SiteShape",
    "Structure",
]
