"""Unrolled steps of a model, and backpropagation through them.

The cell's parameters are constants in the loop: the loss is differentiated with respect to taps on the
pre-activations, which gives one product per site for all steps (see `linearization.taps`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src.base import Array, Batch
from kfrtrl_jax._src.lanes import restarted
from kfrtrl_jax._src.learning import trees, weighted
from kfrtrl_jax._src.learning.groups import GroupedGradients, grouped, together
from kfrtrl_jax._src.learning.types import Model, Parameters


class Seen(NamedTuple):
    """The results of an unrolled segment other than its predictions.

    Attributes:
      carry: at its end, [B, ...].
      starts: the carries that its steps start from, [U, B, ...].
      data: the data that each site's weights are multiplied by at each step, see `linearization.taps`.
    """

    carry: Any
    starts: Any
    data: Any


class Forward(NamedTuple):
    """The forward pass of a segment, before its targets are needed.

    Attributes:
      predictions: [U, B, ...].
      seen: the other results.
      pullback: from the loss's derivatives by the predictions to those by `Unrolled.variables` and
        `Unrolled.floats`; a pytree.
    """

    predictions: Any
    seen: Seen
    pullback: Callable[..., Any]


class SegmentGradient(NamedTuple):
    """Backpropagation through a segment of U steps.

    Attributes:
      sites: of the weighted mean loss over lanes and steps inside the segment, for every site by groups
        of lanes.
      others: likewise by all other variables, see `Unrolled.variables`, by their names.
      cotangent: the derivative of that loss by the state before the segment, [B, n].
      losses: [U, B].
      predictions: [U, B, ...].
      seen: the other results of the segment.
    """

    sites: GroupedGradients
    others: Any
    cotangent: Float[Array, "B n"]
    losses: Float[Array, "U B"]
    predictions: Any
    seen: Seen


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """A segment as a function to differentiate.

    Attributes:
      model: the parts of the learner.
      parameters: {"cell": ..., "readout": ...}.
      carry: before the segment, [B, ...].
      segment: the batches of its steps, [U, B].
    """

    model: Model
    parameters: Parameters
    carry: Any
    segment: Batch

    @property
    def length(self) -> int:
        """U."""
        return len(self.segment.reset)

    @property
    def variables(self) -> Any:
        """The variables of differentiation; taps stand in for the cell's parameters."""
        taps = self.model.linearizer.taps
        shape = self.segment.reset.shape
        return {
            "taps": [jnp.zeros((*shape, *z.shape), z.dtype) for z in taps.zeros],
            "live": taps.live_leaves(self.parameters["cell"]),
            "readout": trees.partition(self.parameters["readout"])[0],
        }

    @property
    def floats(self) -> Any:
        """The leaves of the carry that have derivatives."""
        return trees.partition(self.carry)[0]

    def predict(self, variables: Any, floats: Any) -> tuple[Any, Seen]:
        """The predictions, [U, B, ...], for variables and the floats of the carry before the steps."""
        model, taps = self.model, self.model.linearizer.taps
        readout = trees.combine(
            variables["readout"], trees.partition(self.parameters["readout"])[1]
        )

        def advance(carry: Any, x: Any, step_taps: Any) -> tuple[Any, Any, Any]:
            return taps.step(self.parameters["cell"], variables["live"], carry, x, step_taps)

        def one(carry: Any, step: tuple[Batch, Any]) -> tuple[Any, tuple[Any, Any, Any]]:
            batch, step_taps = step
            start = restarted(model.cell, carry, batch.reset)
            new, output, data = jax.vmap(advance)(start, batch.inputs, step_taps)
            return new, (start, output, data)

        def read(output: Any) -> Any:
            return model.readout.apply(readout, output)

        carry = trees.combine(floats, trees.partition(self.carry)[1])
        carry, (starts, outputs, data) = trees.scan(
            one, carry, (self.segment, variables["taps"]), self.length
        )
        # The readout of all steps at once, outside the loop.
        return jax.vmap(jax.vmap(read))(outputs), Seen(carry, starts, data)

    def by_sites(self, gradient: Any, data: Any) -> tuple[GroupedGradients, Any]:
        """(the gradient by sites, by groups of lanes; that by the variables other than taps)."""
        site_gradients = self.model.linearizer.taps.site_gradients
        others = {name: gradient[name] for name in ("live", "readout")}
        return grouped(site_gradients, (1, 1), self.model.groups)(data, gradient["taps"]), others

    def by_parameters(self, sites: GroupedGradients, others: Any) -> Parameters:
        """The gradient with respect to the parameters."""
        cell = self.model.linearizer.gradient(
            self.parameters["cell"], together(sites), others["live"]
        )
        return {"cell": cell, "readout": others["readout"]}

    def by_state(self, floats: Any) -> Float[Array, "B n"]:
        """The derivatives by the state, [B, n], from those by the floats of the carry."""
        rest = trees.partition(self.carry)[1]
        return self.model.linearizer.flatten_cotangent(trees.combine(floats, rest))


def forward(unrolled: Unrolled) -> Forward:
    """The forward pass of a segment; its targets are not needed."""
    predictions, pullback, seen = jax.vjp(
        unrolled.predict, unrolled.variables, unrolled.floats, has_aux=True
    )
    return Forward(predictions, seen, pullback)


def backward(unrolled: Unrolled, passed: Forward) -> SegmentGradient:
    """The gradient inside a segment, and the cotangent at its start that continues into the past."""
    by_predictions, losses = weighted.by_predictions(
        unrolled.model, passed.predictions, unrolled.segment
    )
    by_variables, by_floats = passed.pullback(by_predictions)
    sites, others = unrolled.by_sites(by_variables, passed.seen.data)
    return SegmentGradient(
        sites, others, unrolled.by_state(by_floats), losses, passed.predictions, passed.seen
    )
