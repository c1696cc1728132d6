"""A problem of control: an environment, and how its rewards count."""

from __future__ import annotations

from typing import NamedTuple

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.control.environments import Environment, from_gymnax
from kfrtrl_jax._src.shapes import require_positive


class Settings(NamedTuple):
    """The constants of AC(lambda).

    Attributes:
      discount: gamma.
      trace_decay: lambda.
      value_weight: b, of the value's gradient beside the policy's.
      entropy_weight: e.
    """

    discount: float = 0.99
    trace_decay: float = 0.9
    value_weight: float = 0.5
    entropy_weight: float = 0.01


class Control(NamedTuple):
    """What an actor-critic learns.

    Attributes:
      batch_size: B, the number of environments beside each other.
      environment: of one lane.
      settings: the constants of AC(lambda).
    """

    batch_size: int
    environment: Environment
    settings: Settings


def control(
    *,
    batch_size: int,
    environment: str = "MemoryChain-bsuite",
    parameters: str = "",
    observed: tuple[int, ...] = (),
    discount: float = 0.99,
    trace_decay: float = 0.9,
    value_weight: float = 0.5,
    entropy_weight: float = 0.01,
) -> Control:
    """Acting in an environment of gymnax, learned by a streaming actor-critic, AC(lambda).

    The loss that is logged is the mean square error of temporal differences, the score the mean return
    of the episodes that ended.

    Args:
      batch_size: B, the number of environments beside each other.
      environment: its name in gymnax.
      parameters: of the environment, such as "memory_length=16".
      observed: which entries of the observation the agent sees; () for all. (0, 2) hides the velocities
        of CartPole.
      discount: gamma.
      trace_decay: lambda.
      value_weight: of the value's gradient beside the policy's.
      entropy_weight: of the policy's entropy.

    Raises:
      ImportError: if gymnax is not installed.
      ValueError: see `from_gymnax`; or if batch_size is less than 1, or discount or trace_decay is not
        in [0, 1].
    """
    require_positive(batch_size=batch_size)
    bounds.require("[0, 1]", discount=discount, trace_decay=trace_decay)
    made = from_gymnax(environment, parameters=parameters, observed=tuple(observed))
    return Control(batch_size, made, Settings(discount, trace_decay, value_weight, entropy_weight))
