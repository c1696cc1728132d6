"""Lanes spread over 1, 2, 4 and 8 devices: kfrtrl sharding --out=PREFIX.

Compiles a training step for so many devices of this machine's processor, and writes what each computes
and what crosses between them to PREFIX.md and PREFIX.json. Nothing is timed.
"""

from __future__ import annotations

import pathlib

import jax
from absl import flags

from kfrtrl_jax.studies.benchmarking import sharding
from kfrtrl_jax.training import command_line, workdir

_OUT = flags.DEFINE_string("out", "runs/sharding", "Prefix of the files to write.")
_CELL = flags.DEFINE_string("cell", "recurrent_highway(hidden_size=128)", "The cell.")
_LANES = flags.DEFINE_integer("lanes", 16, "The number of lanes.")
_ESTIMATORS = flags.DEFINE_multi_string(
    "estimator", ["kf_rtrl", "ok(rank=8)", "uoro", "snap", "rtrl", "truncated"], "The estimators."
)


def run() -> int:
    """Compiles all steps and writes the two files."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    rows = []
    for estimator in _ESTIMATORS.value:
        config = {
            "num_steps": 1,
            "cell": _CELL.value,
            "estimator": estimator,
            "task": f"copy(batch_size={_LANES.value})",
            "optimizer": "adam(learning_rate=0.001)",
        }
        rows += [sharding.measure(config, devices) for devices in (1, 2, 4, 8)]
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    table = sharding.as_table(rows)
    print(table)
    workdir.write_text(workdir.with_ending(out, "md"), table)
    workdir.write_json(workdir.with_ending(out, "json"), [row._asdict() for row in rows])
    return 0


def main() -> None:
    """Runs the program."""
    command_line.run_plain(run)
