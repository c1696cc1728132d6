"""What a step costs each device, and what devices tell each other, from the compiled program."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from kfrtrl_jax._src.markdown import table
from kfrtrl_jax._src.sizes import bytes_of
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training.group import make_group

# An instruction such as: (f32[128,4], f32[4]) all-reduce(...).
_COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
    r"\("
)
_SHAPE = re.compile(r"(pred|[a-z]+\d+)\[([\d,]*)\]")


class Row(NamedTuple):
    """A training step on a number of devices.

    Attributes:
      estimator: as text.
      devices: their number.
      flops: floating-point operations of one device.
      gradient_bytes: of one gradient.
      collectives: bytes that a device receives, by kind of collective.
    """

    estimator: str
    devices: int
    flops: float
    gradient_bytes: int
    collectives: Mapping[str, int]


def measure(config: Any, devices: int) -> Row:
    """Compiles a step of a run for a number of devices.

    Args:
      config: as for `config.resolve`, with K = 1, so that no loop repeats a collective.
      devices: at most as many as JAX has.
    """
    resolved = configs.resolve(config, {"devices": devices, "log_every": 1, "num_steps": 1})
    group = make_group([resolved])
    shapes = jax.eval_shape(group.init)
    lie = group.placed(shapes)
    step = jax.jit(group.run_chunk, in_shardings=(lie,), out_shardings=(lie, None))
    compiled = step.lower(shapes).compile()
    costs: Any = compiled.cost_analysis()
    return Row(
        estimator=configs.shown(resolved, "estimator"),
        devices=devices,
        flops=float(costs["flops"]),
        gradient_bytes=bytes_of(group.learned(shapes)),
        collectives=collectives(str(compiled.as_text())),
    )


def collectives(program: str) -> dict[str, int]:
    """The bytes that the collectives of a compiled program's text give each device, by kind."""
    found: dict[str, int] = {}
    for shapes, kind in _COLLECTIVE.findall(program):
        sizes = [
            _bytes_of(dtype) * math.prod(int(n) for n in shape.split(",") if n)
            for dtype, shape in _SHAPE.findall(shapes)
        ]
        found[kind] = found.get(kind, 0) + sum(sizes)
    return found


def _bytes_of(dtype: str) -> int:
    """Of one number of a type such as f32; a truth value, pred, takes a byte."""
    return 1 if dtype == "pred" else int(re.sub(r"\D", "", dtype)) // 8


def as_table(rows: list[Row]) -> str:
    """Rows in Markdown: FLOPs of a device as a share of those on one, and bytes."""
    alone = {row.estimator: row.flops for row in rows if row.devices == 1}
    head = ["estimator", "devices", "FLOPs of each", "of one device's", "gradient, bytes",
            "all-reduce, bytes", "other collectives, bytes"]  # fmt: skip
    lines = []
    for row in rows:
        reduced = row.collectives.get("all-reduce", 0)
        others = sum(row.collectives.values()) - reduced
        share = row.flops / alone[row.estimator]
        lines.append(
            [row.estimator, f"{row.devices}", f"{row.flops:.4g}", f"{share:.3f}",
             f"{row.gradient_bytes:,}", f"{reduced:,}", f"{others:,}"]
        )  # fmt: skip
    return table(head, lines)
