"""How far each estimator is from the exact influence matrix, and what it costs."""

from kfrtrl_jax.fidelity.cells import CERTIFIED_CELLS
from kfrtrl_jax.fidelity.certificate import (
    LIMIT,
    Certificate,
    Row,
    Size,
    certify,
    deviations,
    markdown,
    standardized,
    violations,
)
from kfrtrl_jax.fidelity.names import Named, named
from kfrtrl_jax.fidelity.trajectory import (
    Reference,
    Trajectory,
    drawn,
    gradients,
    push_all,
    reference,
    trajectory,
)

__all__ = [
    "CERTIFIED_CELLS",
    "LIMIT",
    "Certificate",
    "Named",
    "Reference",
    "Row",
    "Size",
    "Trajectory",
    "certify",
    "deviations",
    "drawn",
    "gradients",
    "markdown",
    "named",
    "push_all",
    "reference",
    "standardized",
    "trajectory",
    "violations",
]
