"""What comes to a learner's `step`: its shapes and types, checked while it is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Batch
from kfrtrl_jax._src.one_step import shown
from kfrtrl_jax._src.shapes import require_leading_axes, require_shape


class Door(NamedTuple):
    """What a segment must be like.

    Attributes:
      example_input: the shapes and types of one lane's input.
      segment_length: K.
      batch_size: B.
      prediction: the shapes and types of one lane's prediction.
      loss: (prediction, target) -> scalar, for one lane.
    """

    example_input: Any
    segment_length: int
    batch_size: int
    prediction: Any
    loss: Callable[[Any, Any], Array]

    def opened(self, segment: Any) -> tuple[Batch, bool]:
        """(the segment with its time axis, whether it came without: one time step of K = 1).

        Raises:
          ValueError: in one line that says what was given and what would be right.
        """
        if not isinstance(segment, Batch):
            raise ValueError(
                f"a segment must be a Batch(inputs, targets, reset), got a {type(segment).__name__}"
            )
        single = self._is_single(segment.inputs)
        if single:
            segment = jax.tree.map(lambda x: jnp.asarray(x)[None], segment)
        axes = (self.segment_length, self.batch_size)
        self.check_inputs(segment.inputs, axes)
        if segment.reset is None:
            segment = segment._replace(reset=jnp.zeros(axes, bool))
        _require_like("reset", segment.reset, jax.ShapeDtypeStruct(axes, bool), "")
        self._check_targets(segment.targets, axes)
        if segment.weight is not None:
            require_shape("segment.weight", segment.weight, *axes)
        return segment, single

    def check_inputs(self, inputs: Any, axes: tuple[int, ...]) -> None:
        """Refuses inputs that are not examples with these axes in front.

        Raises:
          ValueError: in one line that says what was given and what would be right.
        """
        right = stacked(self.example_input, *axes)
        got, tree = (str(jax.tree.structure(x)) for x in (inputs, right))
        if got != tree:
            raise ValueError(f"segment.inputs must be like the example input, {tree}, got {got}")
        for x, like in zip(jax.tree.leaves(inputs), jax.tree.leaves(right)):
            _require_like("inputs", x, like, self._remedy(jnp.shape(x), like.shape, len(axes)))

    def _is_single(self, inputs: Any) -> bool:
        """Whether inputs are those of one time step of all lanes, and a segment is one time step."""
        return self.segment_length == 1 and jax.tree.map(jnp.shape, inputs) == jax.tree.map(
            jnp.shape, stacked(self.example_input, self.batch_size)
        )

    def _remedy(self, got: tuple[int, ...], right: tuple[int, ...], axes: int) -> str:
        lanes = right[axes - 1]
        if len(got) == len(right) - 1:
            if axes == 2 and got == right[1:]:
                return f"it has no time axis: stack the batches of {right[0]} time steps"
            return "the axes in front are those of time and of the lanes"
        if len(got) == len(right) and got[axes - 1] != lanes:
            return f"the learner's batch_size is {lanes}"
        if len(got) == len(right) and got[0] != right[0]:
            return f"the learner's segment_length is {right[0]}"
        return "the learner's example_input is of one lane" if got != right else ""

    def _check_targets(self, targets: Any, axes: tuple[int, int]) -> None:
        require_leading_axes("segment.targets", targets, *axes)
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[2:], jnp.result_type(x)), targets
        )
        try:
            jax.eval_shape(self.loss, self.prediction, target)
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise ValueError(
                f"the loss cannot compare the prediction of one lane, {shown(self.prediction)}, with "
                f"its target, {shown(target)}: {reason[0] if reason else type(error).__name__}"
            ) from error


def stacked(example: Any, *axes: int) -> Any:
    """The shapes and types of examples with further axes in front."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*axes, *jnp.shape(x)), jnp.result_type(x)), example
    )


def _require_like(name: str, x: Any, like: Any, remedy: str) -> None:
    if shown(x) != shown(like):
        hint = f"; {remedy}" if remedy else ""
        raise ValueError(f"segment.{name} must be {shown(like)}, got {shown(x)}{hint}")
