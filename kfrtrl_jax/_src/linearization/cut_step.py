"""A cell's step, cut at its pre-activations, and the structure of its linearization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Cell, Site, SiteJacobian, Structure
from kfrtrl_jax._src.linearization.discovery import Discovery, discover, follows, parameter_paths
from kfrtrl_jax._src.linearization.local_jacobians import LocalJacobians
from kfrtrl_jax._src.linearization.patterns import DenseRelation, normalized
from kfrtrl_jax._src.linearization.program import TracedStep, Variable, is_inexact
from kfrtrl_jax._src.linearization.random_keys import check_raw_keys
from kfrtrl_jax._src.linearization.reach import mask_of, places, reachable
from kfrtrl_jax._src.linearization.sites import SitePlan, plan_sites
from kfrtrl_jax._src.linearization.trace import trace
from kfrtrl_jax._src.linearization.zeros import nonzero_masks
from kfrtrl_jax._src.matrices import Banded, Index, Terms

# Zeros are not looked for in Jacobians with more entries than this.
_MAX_ENTRIES = 2**28


class CutStep(NamedTuple):
    """What has been read from a cell's step.

    Attributes:
      program: the step as equations.
      discovery: which of them make the pre-activations, and what comes before them.
      plans: of the sites.
      states: the variables of the old carry that are floats.
      local: the derivatives between the cuts.
    """

    program: TracedStep
    discovery: Discovery
    plans: Sequence[SitePlan]
    states: Sequence[Variable]
    local: LocalJacobians

    @property
    def state_size(self) -> int:
        """n."""
        return sum(math.prod(v.shape) for v in self.states)


def read_step(cell: Cell, params: Any, carry: Any, example_input: Any) -> CutStep:
    """Traces the step of one lane and finds its sites.

    Args:
      cell: written for one lane.
      params: shapes of the parameters.
      carry: shapes of the carry.
      example_input: only its shape and type matter.

    Raises:
      UnsupportedCellError: see `make_linearizer`.
    """
    program = trace(cell.step, params, carry, example_input, follows)
    check_raw_keys(program, carry)
    discovery = discover(program)
    plans = plan_sites(discovery)
    states = list(filter(is_inexact, program.carry))
    results = [atom for atom, v in zip(program.new_carry, program.carry) if v in states]
    local = LocalJacobians(discovery, states, results)
    return CutStep(program, discovery, plans, states, local)


def structure_of(step: CutStep, shapes: Any, batch_size: int, carry: Any) -> Structure:
    """What estimators need to know of the linearizations of a step.

    Args:
      step: as read.
      shapes: a `Linearization` of one lane, by shape.
      batch_size: B.
      carry: shapes of the carry.
    """
    size, states = step.state_size, step.states
    masks = nonzero_masks(step.discovery.prefix)
    entries = size * sum(math.prod(v.shape) for v in step.local.sources)
    # Past this size nothing is known to be zero, which is never wrong.
    searched = entries <= _MAX_ENTRIES
    reach = reachable(step.local, masks) if searched else {}
    entries_of_parts = zip(step.program.carry, _entries_of_parts(carry), strict=True)
    return Structure(
        batch_size=batch_size,
        state_size=size,
        sites=tuple(
            _site(step, plan, jacobian, masks, reach)
            for plan, jacobian in zip(step.plans, shapes.sites)
        ),
        dtype=jnp.result_type(*(v.dtype for v in states)),
        jacobian_mask=mask_of([reach.get(v) for v in states]),
        leaf_sizes=tuple(math.prod(v.shape) for v in states),
        leak_mask=mask_of(list(map(places, shapes.leak.blocks))) if searched else None,
        leaf_entries=tuple(entry for v, entry in entries_of_parts if v in states),
    )


def _site(
    step: CutStep,
    plan: SitePlan,
    jacobian: SiteJacobian,
    masks: dict[Variable, np.ndarray],
    reach: dict[Variable, np.ndarray],
) -> Site:
    def label(weights: list[Variable]) -> str:
        return " + ".join(parameter_paths(step.program, step.discovery.prefix, weights))

    columns = _columns_of(jacobian.derivatives)
    return Site(
        input_size=plan.input_size,
        output_size=plan.output_size,
        label=label(plan.weights()),
        columns=columns,
        derivative_mask=mask_of([plan.reached(reach)]) if columns is None else None,
        weights_mask=mask_of([plan.nonzero(masks)]),
        problem=plan.problem,
        uses=plan.count,
        parts=tuple((number, label(weights)) for number, weights in plan.weights_of_columns()),
    )


def _entries_of_parts(carry: Any) -> list[str]:
    """The entry that each real leaf is in: the two parts of a complex one have the same."""
    return [
        jax.tree_util.keystr(path[:1], simple=True)
        for path, leaf in jax.tree_util.tree_flatten_with_path(carry)[0]
        for _ in range(2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1)
    ]


def _columns_of(derivatives: Terms) -> Index | None:
    """The columns of all of a site's D together, [bands, n], if they are few; see `Banded`."""
    banded = [group for group in derivatives.groups if isinstance(group, Banded)]
    if len(banded) < len(derivatives.groups):
        return None
    together = normalized([band for group in banded for band in group.columns.array])
    if isinstance(together, DenseRelation):
        return None
    return Index(np.stack(together)) if together else banded[0].columns
