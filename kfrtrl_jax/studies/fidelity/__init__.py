"""The error of each estimator against the exact influence matrix, and its cost."""

from kfrtrl_jax._src.trajectory import (
    Reference,
    Trajectory,
    drawn,
    gradients,
    push_all,
    reference,
    trajectory,
)
from kfrtrl_jax.studies.fidelity.cells import CERTIFIED_CELLS
from kfrtrl_jax.studies.fidelity.certificate import (
    LIMIT,
    Certificate,
    CertificateRow,
    Size,
    certify,
    deviations,
    markdown,
    standardized,
    violations,
)
from kfrtrl_jax.studies.fidelity.names import Named, named
from kfrtrl_jax.studies.fidelity.own_cell import CellCertificate
from kfrtrl_jax.studies.fidelity.own_cell import certify as certify_cell

__all__ = [
    "CERTIFIED_CELLS",
    "LIMIT",
    "CellCertificate",
    "Certificate",
    "CertificateRow",
    "Named",
    "Reference",
    "Size",
    "Trajectory",
    "certify",
    "certify_cell",
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
