"""The sites of a step: parameters, and all their uses.

What a step uses again and again, a convolution's kernel, a weight in the iterations of a solver, is one
site with as many terms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import SiteJacobian
from kfrtrl_jax._src.linearization.discovery import Discovery
from kfrtrl_jax._src.linearization.parts import Part, parts_of, roots
from kfrtrl_jax._src.linearization.program import Environment, Variable
from kfrtrl_jax._src.linearization.uses import OpaqueUse, ProductUse, ScalingUse, Use, UseInLoop
from kfrtrl_jax._src.matrices import (
    Banded,
    Dense,
    Group,
    Matrix,
    Terms,
    below_each_other,
    plain,
    stacked,
)

Array = jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class SitePlan:
    """One site: all uses of the same weights in a step.

    Attributes:
      uses: at least one, all of one signature.
      problem: why the weights have no structure, if they have none.
    """

    uses: tuple[Use, ...]
    problem: str | None = None

    @property
    def input_size(self) -> int:
        """The number m of rows of the block of weights."""
        return self.uses[0].input_size

    @property
    def output_size(self) -> int:
        """The number g of its columns."""
        return self.uses[0].output_size

    @property
    def count(self) -> int:
        """The number T of uses."""
        return sum(use.count for use in self.uses)

    def weights(self) -> list[Variable]:
        """The parameter-only values that the block of weights holds, each once."""
        return self.uses[0].weights()

    def weights_of_columns(self) -> list[tuple[int, list[Variable]]]:
        """From left to right how many of its columns hold which of these."""
        return self.uses[0].weights_of_columns()

    def jacobian(
        self, derivatives: Sequence[Mapping[Variable, Matrix]], environment: Environment
    ) -> SiteJacobian:
        """a and D of all uses, of one lane: [T, m], and T matrices n x g.

        Args:
          derivatives: of each block of rows of the new state, by every pre-activation and opaque value.
          environment: the values of a step.
        """
        inputs = _one_after_another([use.inputs(environment) for use in self.uses], axis=0)
        groups = stacked([_derivative(use, derivatives, environment) for use in self.uses])
        return SiteJacobian(inputs.astype(jax.tree.leaves(groups)[0].dtype), Terms(groups))

    def reached(self, reach: Mapping[Variable, np.ndarray]) -> np.ndarray | None:
        """Where D can be non-zero, [n, g], in any use; None if nothing is known.

        Args:
          reach: the same for pre-activations and opaque values, where it is known.
        """
        if not all(v in reach for use in self.uses for v in use.sources()):
            return None
        return np.any([use.reached(reach) for use in self.uses], axis=0)

    def met(self, environment: Environment) -> Array:
        """What the weights meet in all uses, see `Use.met`."""
        return _one_after_another([use.met(environment) for use in self.uses], axis=0)

    def gradient(self, met: Array, taps: Mapping[Variable, Array]) -> Array:
        """The sum over steps, lanes and uses, [m, g].

        Args:
          met: of the steps and lanes, [K, B, T, ...].
          taps: the loss's derivative by every pre-activation, [K, B, its size].
        """
        cotangents = _one_after_another([use.cotangents_of(taps) for use in self.uses], axis=2)
        return self.uses[0].gradient(met, cotangents)

    def nonzero(self, masks: Mapping[Variable, np.ndarray]) -> np.ndarray | None:
        """Which entries of the block of weights can be non-zero, see `Use.nonzero`."""
        return self.uses[0].nonzero(masks)

    def cotangents(self, block: Array) -> list[tuple[Variable, Array]]:
        """The gradient of each of `weights()`, from the gradient of the block, [m, g]."""
        return self.uses[0].cotangents(block)


def _derivative(
    use: Use, blocks: Sequence[Mapping[Variable, Matrix]], environment: Environment
) -> Group:
    """D of a use, in the same blocks of rows as the derivatives by its sources."""
    if len(blocks) == 1:
        return use.derivative(blocks[0], environment)
    if use.count > 1:
        sources = use.sources()
        whole = {v: plain(below_each_other([block[v] for block in blocks])) for v in sources}
        return use.derivative(whole, environment)
    parts = [use.derivative(block, environment) for block in blocks]
    return below_each_other([part for part in parts if isinstance(part, (Dense, Banded))])


def _one_after_another(parts: Sequence[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis)


def plan_sites(discovery: Discovery) -> tuple[SitePlan, ...]:
    """Puts together what has the same inputs, then all uses of the same weights."""
    uses = _uses(discovery, roots(discovery.prefix))
    sites: dict[tuple[Any, ...], list[Use]] = {}
    for use in uses:
        sites.setdefault(use.signature, []).append(use)
    return tuple(
        SitePlan(tuple(of_site), _problem(of_site[0], discovery)) for of_site in sites.values()
    )


def _uses(discovery: Discovery, root_of: Callable[[Variable], Any]) -> list[Use]:
    groups: dict[tuple[Any, ...], list[Part]] = {}
    for z in discovery.pre_activations:
        for part in parts_of(z, root_of):
            groups.setdefault(part.input_key, []).append(part)
    uses: list[Use] = [ProductUse(tuple(members)) for members in groups.values()]
    uses += [
        ScalingUse(z.variable, scaling) for z in discovery.pre_activations for scaling in z.scalings
    ]
    uses += map(OpaqueUse, discovery.opaque)
    for inner in discovery.loops:
        inside = _uses(inner.discovery, root_of)
        uses += [UseInLoop(use, inner.loop.length) for use in inside]
    return uses


def _problem(use: Use, discovery: Discovery) -> str | None:
    return (isinstance(use, OpaqueUse) and discovery.opaque[use.value]) or None
