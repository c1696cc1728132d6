"""Runs spread over devices: the lanes of one run, or the runs of a group.

The devices may be those of several processes, as many in each. The compiler divides the program by
where its arrays lie. Lanes meet in the gradient, runs nowhere.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kfrtrl_jax._src.lanes import is_key
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
    there, asked, processes = jax.device_count(), config.devices, jax.process_count()
    if asked > there:
        raise ConfigError(
            f"config.devices must be at most {there}, as many as there are, got {asked}"
        )
    if asked and count % asked:
        raise ConfigError(
            f"config.devices must divide the number of {what} ({count}), got {asked}; 0 takes as many "
            f"as possible"
        )
    for name, number in ((f"the number of {what}", count), ("config.devices", asked)):
        if number % processes:
            raise ConfigError(
                f"{name} must be a multiple of the number of processes ({processes}), got {number}"
            )
    return asked or max(n for n in range(processes, there + 1, processes) if count % n == 0)


def spread(axes: Any, devices: int) -> Any:
    """For each array how it lies on the devices: in equal parts along its axis, or whole on each.

    Args:
      axes: of each array, -1 for those that are whole on each device.
      devices: how many.
    """
    of_each = devices // jax.process_count()
    chosen = [d for i in range(jax.process_count()) for d in jax.local_devices(i)[:of_each]]
    mesh = Mesh(np.array(chosen), (_AXIS,))

    def leaf(axis: int) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, *[_AXIS] * (axis >= 0)))

    return jax.tree.map(leaf, axes)


def placed(tree: Any, lie: Any) -> Any:
    """Arrays, the same in all processes, where they are to lie; None for one device."""
    if jax.process_count() == 1:
        return jax.device_put(tree, lie)

    def leaf(x: Any, sharding: NamedSharding) -> Any:
        data = np.asarray(jax.random.key_data(x) if is_key(x) else x)
        put = jax.make_array_from_callback(data.shape, sharding, lambda index: data[index])
        return jax.random.wrap_key_data(put) if is_key(x) else put

    # Copied, as what is put may share memory with an array on the host, and then be donated.
    copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=lie)
    return copied(jax.tree.map(leaf, tree, lie))


def whole(x: Any) -> Any:
    """An array with all its parts in this process, also if some are in others; all must call this."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    return multihost_utils.process_allgather(x, tiled=True)
