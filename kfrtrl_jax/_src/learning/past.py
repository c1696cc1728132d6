"""The part of a gradient from before its own steps: by kept steps, and the influence before them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from kfrtrl_jax._src.base import Array
from kfrtrl_jax._src.learning import kept, trees
from kfrtrl_jax._src.learning.groups import GroupedGradients
from kfrtrl_jax._src.learning.recovery import recovered
from kfrtrl_jax._src.learning.types import Model


class Pulled(NamedTuple):
    """A gradient's part from the time before its own steps.

    Attributes:
      influence: the influence to go on with.
      gradients: for every site by groups of lanes, [P, m, g].
      cotangent: that the influence was pulled with, [B, n].
    """

    influence: Any
    gradients: GroupedGradients
    cotangent: Array


class Past(NamedTuple):
    """What an update's gradient takes from the time before its own steps.

    Attributes:
      model: what is trained.
      influence: before the kept steps.
      ring: the kept steps; None for none.
      cotangent: the derivative by the state before the update's own steps, [B, n].
      begins: the lanes that start anew before each of these, [U, B].
      steps: how many of the kept steps there are.
    """

    model: Model
    influence: Any
    ring: kept.Kept | None
    cotangent: Array
    begins: Array
    steps: Array

    def pulled(self) -> tuple[Pulled, Array]:
        """(what it is, whether lanes were left out).

        Lanes with infinite influence or derivatives that have no part in the gradient are left out,
        as they would make it NaN.
        """
        found = self._sum(careful=False)
        if self.model.forget is None and self.ring is None:
            return found, jnp.zeros((), bool)
        return recovered(found, lambda: self._sum(careful=True))

    def _sum(self, careful: bool) -> Pulled:
        influence, cotangent, begun = self.influence, self.cotangent, self.begins[0]
        along: GroupedGradients | None = None
        if self.ring is not None:
            back = kept.backpropagate(self.ring, cotangent, self.steps, careful, self.model.groups)
            cotangent, along, begun = back.cotangent, back.gradients, begun | back.started
        pulled_from = influence
        if careful and self.model.forget is not None:
            # Lanes that nothing depends on contribute nothing, even if infinite.
            pulled_from = self.model.forget(influence, begun | jnp.all(cotangent == 0, axis=1))
            influence = self.model.forget(influence, begun | jnp.any(self.begins, axis=0))
        pulled = self.model.pull(pulled_from, cotangent)
        gradients = pulled if along is None else trees.add(pulled, along)
        return Pulled(influence, gradients, cotangent)
