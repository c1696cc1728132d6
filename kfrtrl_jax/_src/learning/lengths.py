"""The lengths of a learner's loops, in time steps."""

from __future__ import annotations

import dataclasses

from kfrtrl_jax._src import bounds


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Numbers of time steps.

    Attributes:
      segment: K, after which the influence is pushed.
      update: U, after which the parameters are updated; it divides K.
      window: how many steps are kept; a multiple of K.
    """

    segment: int
    update: int
    window: int

    @property
    def updates(self) -> int:
        """How many updates a segment has."""
        return self.segment // self.update

    @property
    def earlier(self) -> int:
        """How many steps before the segment are kept."""
        return self.window - self.segment

    @property
    def keeps(self) -> bool:
        """Whether there are kept steps before an update's own."""
        return self.update < self.window


def make_lengths(segment_length: int, update_every: int | None, window: int | None) -> Lengths:
    """The lengths that were asked for; None stands for the segment's.

    Raises:
      ValueError: if they do not fit together.
    """
    update_every = segment_length if update_every is None else update_every
    window = segment_length if window is None else window
    bounds.require("[1, inf)", segment_length=segment_length)
    if update_every < 1 or segment_length % update_every:
        raise ValueError(
            f"update_every must divide segment_length, got {update_every} and {segment_length}"
        )
    if window < segment_length or window % segment_length:
        raise ValueError(
            f"window must be a multiple of segment_length, got {window} and {segment_length}"
        )
    return Lengths(segment_length, update_every, window)
