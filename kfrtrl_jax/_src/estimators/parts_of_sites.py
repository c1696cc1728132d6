"""Some columns of a site as a site of its own."""

from __future__ import annotations

import numpy as np

from kfrtrl_jax._src.base import Mask, Site, SiteJacobian
from kfrtrl_jax._src.matrices import Index, take


def part_of(
    site: Site,
    columns: np.ndarray,
    *,
    rows: slice = slice(None),
    inputs: np.ndarray | None = None,
) -> Site:
    """A site with these columns of W alone.

    Args:
      site: the whole.
      columns: which of the g; ascending.
      rows: of D, which of the n.
      inputs: which of the m; None for all of them.
    """
    bands, derivatives, weights = site.columns, site.derivative_mask, site.weights_mask
    if bands is not None:
        numbers = np.full(site.output_size + 1, -1)
        numbers[columns] = np.arange(len(columns))
        of_part = numbers[bands.array][:, rows]
        bands = Index(of_part[(of_part >= 0).any(axis=1)])
    if inputs is None:
        inputs = np.arange(site.input_size)
    return site._replace(
        input_size=len(inputs),
        output_size=len(columns),
        columns=bands,
        derivative_mask=derivatives and mask_of(derivatives.array[rows, columns]),
        weights_mask=weights and mask_of(weights.array[np.ix_(inputs, columns)]),
        parts=(),
    )


def jacobian_of(
    site: SiteJacobian, columns: np.ndarray, *, inputs: np.ndarray | None = None
) -> SiteJacobian:
    """The immediate Jacobian of such a part, all rows of D."""
    read, derivatives = site
    if inputs is not None:
        read = take(read, inputs, axis=-1)
    if len(columns) < derivatives.shape[1]:
        derivatives = derivatives.columns_at(columns)
    return SiteJacobian(read, derivatives)


def mask_of(array: np.ndarray) -> Mask | None:
    """A mask; None if all can be non-zero."""
    return None if array.all() else Mask(array)
