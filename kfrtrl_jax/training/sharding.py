"""Runs spread over devices: the lanes of one run, or the runs of a group.

The compiler divides the program by where its arrays lie. Lanes meet in the gradient, runs nowhere.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kfrtrl_jax.errors import ConfigError

_AXIS = "devices"


def devices_of(config: Any, count: int, what: str) -> int:
    """The number of devices that so many lanes or runs are spread over evenly.

    Args:
      config: resolved; its field `devices` is 0 for as many as possible.
      count: of the lanes or runs.
      what: they are, for messages.

    Raises:
      ConfigError: if there are fewer devices than asked for, or if they cannot have equal shares.
    """
    there, asked = jax.local_device_count(), config.devices
    if asked > there:
        raise ConfigError(
            f"config.devices must be at most {there}, as many as there are, got {asked}"
        )
    if asked and count % asked:
        raise ConfigError(
            f"config.devices must divide the number of {what} ({count}), got {asked}; 0 takes as many "
            f"as possible"
        )
    return asked or max(n for n in range(1, there + 1) if count % n == 0)


def spread(axes: Any, devices: int) -> Any:
    """For each array how it lies on the devices: in equal parts along its axis, or whole on each.

    Args:
      axes: of each array, -1 for those that are whole on each device.
      devices: how many.
    """
    mesh = Mesh(np.array(jax.local_devices()[:devices]), (_AXIS,))

    def leaf(axis: int) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, *[_AXIS] * (axis >= 0)))

    return jax.tree.map(leaf, axes)
