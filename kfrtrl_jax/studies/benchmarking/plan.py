"""What a run on a cluster would need: memory, work and traffic of a device, from compiled programs.

A step is compiled, but not run, at the width of the plan and for few lanes. All of its costs are linear
in the number of lanes, as these do not meet, so those of a device's share follow. What the devices
could do in a second is an assumption, given by the user.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from kfrtrl_jax._src import xla
from kfrtrl_jax._src.bounds import missed
from kfrtrl_jax._src.markdown import table
from kfrtrl_jax._src.sizes import bytes_of
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training.group import make_group


class Devices(NamedTuple):
    """A cluster of equal accelerators.

    Attributes:
      number: of the accelerators.
      operations: floating-point operations per second of each.
      memory: bytes of each.
      bandwidth: bytes per second between each and its memory.
      link: bytes per second that each sends to the next one.
    """

    number: int
    operations: float
    memory: float
    bandwidth: float
    link: float


class Costs(NamedTuple):
    """A training step on one device.

    Attributes:
      operations: floating-point operations.
      traffic: bytes read from and written to memory.
      state: bytes of the run's state.
      peak: bytes of the state and of all that a step needs beside it.
      gradient: bytes of one gradient.
    """

    operations: float
    traffic: float
    state: float
    peak: float
    gradient: float


class Plan(NamedTuple):
    """A run spread over devices.

    Attributes:
      cell, estimator: as text.
      lanes: of each device.
      costs: of each device.
      compute: seconds of a step at the device's most operations per second.
      memory_time: seconds for what a step moves between a device and its memory.
      exchange: seconds for the sum of the gradients in a ring.
      most_lanes: that fit into the memory of a device.
    """

    cell: str
    estimator: str
    lanes: int
    costs: Costs
    compute: float
    memory_time: float
    exchange: float
    most_lanes: int

    @property
    def seconds(self) -> float:
        """Of a step, if a device's work overlaps with its own memory's and not with the exchange."""
        return max(self.compute, self.memory_time) + self.exchange


def compiled_costs(cell: str, estimator: str, lanes: int) -> Costs:
    """The costs of a step of the copy task that is pushed at every step, on one device."""
    config = configs.resolve(
        {
            "num_steps": 1,
            "log_every": 1,
            "devices": 1,
            "cell": cell,
            "estimator": estimator,
            "task": f"copy(batch_size={lanes})",
            "optimizer": "adam(learning_rate=0.001)",
        }
    )
    group = make_group([config])
    shapes = jax.eval_shape(group.init)
    compiled = xla.jit(group.run_chunk, donate_argnums=0).lower(shapes).compile()
    counted: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    return Costs(
        operations=float(counted["flops"]),
        traffic=float(counted["bytes accessed"]),
        state=float(memory.argument_size_in_bytes),
        peak=float(memory.argument_size_in_bytes + memory.temp_size_in_bytes),
        gradient=float(bytes_of(group.learned(shapes))),
    )


def make_plan(
    cell: str, estimator: str, lanes: int, devices: Devices, measured: Sequence[int] = (2, 4)
) -> Plan:
    """The plan of a run.

    Args:
      cell, estimator: as text.
      lanes: of the whole run.
      devices: that they are spread over; lanes without an equal share are rounded up.
      measured: two numbers of lanes for which a step is compiled.

    Raises:
      ConfigError: if a number of the devices is not positive and finite.
    """
    for name, value in devices._asdict().items():
        if allowed := missed("(0, inf)", value):
            raise ConfigError(f"{name} must be {allowed}, got {value}")
    few, more = measured
    first, second = (compiled_costs(cell, estimator, count) for count in measured)
    slope = Costs(*((b - a) / (more - few) for a, b in zip(first, second)))
    own = math.ceil(lanes / devices.number)
    costs = Costs(*(a + (own - few) * s for a, s in zip(first, slope)))
    alone = first.peak - few * slope.peak
    ring = 2 * (devices.number - 1) / devices.number
    return Plan(
        cell,
        estimator,
        own,
        costs,
        compute=costs.operations / devices.operations,
        memory_time=costs.traffic / devices.bandwidth,
        exchange=ring * costs.gradient / devices.link,
        most_lanes=max(0, int((devices.memory - alone) / slope.peak)),
    )


def as_table(plans: Sequence[Plan]) -> str:
    """Plans in Markdown."""
    head = ["cell", "estimator", "lanes of a device", "state, GB", "peak, GB", "lanes that fit",
            "TFLOP", "through memory, GB", "gradient, MB", "compute, ms", "memory, ms", "exchange, ms",
            "step, ms"]  # fmt: skip
    lines = []
    for plan in plans:
        costs = plan.costs
        figures = (
            f"{plan.lanes}",
            f"{costs.state / 1e9:.3g}",
            f"{costs.peak / 1e9:.3g}",
            f"{plan.most_lanes:,}",
            f"{costs.operations / 1e12:.3g}",
            f"{costs.traffic / 1e9:.3g}",
            f"{costs.gradient / 1e6:.3g}",
            f"{1e3 * plan.compute:.3g}",
            f"{1e3 * plan.memory_time:.3g}",
            f"{1e3 * plan.exchange:.3g}",
            f"{1e3 * plan.seconds:.3g}",
        )
        lines.append([plan.cell, plan.estimator, *figures])
    return table(head, lines)
