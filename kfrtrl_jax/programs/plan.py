"""What a run on a cluster would need: kfrtrl plan --out=PREFIX.

Compiles a step at the width of the plan for a few lanes, without running it, and writes the memory,
work and traffic of each device, and the time that they take at the given speeds, to PREFIX.md and
PREFIX.json. The default speeds are those of the data sheet of an H100 SXM, products in TF32, and a
network of 400 Gb/s for each.
"""

from __future__ import annotations

import pathlib

from absl import flags

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies.benchmarking import plan
from kfrtrl_jax.training import command_line, workdir

_OUT = flags.DEFINE_string("out", "runs/plan", "Prefix of the files to write.")
_RUNS = flags.DEFINE_multi_string(
    "run",
    [
        "recurrent_highway(hidden_size=4096) / kf_rtrl",
        "recurrent_highway(hidden_size=4096) / ok(rank=8)",
        "lru(hidden_size=4096) / diagonal_rtrl",
        "stack([lru(hidden_size=1024)] * 4) / layerwise(diagonal_rtrl)",
    ],
    "A cell and an estimator, with a slash between them.",
)
_LANES = flags.DEFINE_integer("lanes", 4096, "Lanes of the run.", lower_bound=1)
_DEVICES = flags.DEFINE_integer("devices", 64, "The number of accelerators.", lower_bound=1)
_OPERATIONS = flags.DEFINE_float("operations", 495e12, "Operations per second of each.")
_MEMORY = flags.DEFINE_float("memory", 80e9, "Bytes of memory of each.")
_BANDWIDTH = flags.DEFINE_float("bandwidth", 3.35e12, "Bytes per second from and to its memory.")
_LINK = flags.DEFINE_float("link", 50e9, "Bytes per second that each sends to the next.")


def run() -> int:
    """Makes all plans and writes the two files."""
    devices = plan.Devices(
        _DEVICES.value, _OPERATIONS.value, _MEMORY.value, _BANDWIDTH.value, _LINK.value
    )
    plans = []
    for run in _RUNS.value:
        cell, slash, estimator = (part.strip() for part in run.partition("/"))
        if not slash:
            raise ConfigError(f"--run must be a cell, a slash and an estimator, got {run!r}")
        plans.append(plan.make_plan(cell, estimator, _LANES.value, devices))
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    table = plan.as_table(plans)
    print(table)
    workdir.write_text(workdir.with_ending(out, "md"), table)
    whole = [{**p._asdict(), "costs": p.costs._asdict(), "seconds": p.seconds} for p in plans]
    found = {"lanes": _LANES.value, "devices": devices._asdict(), "plans": whole}
    workdir.write_json(workdir.with_ending(out, "json"), found)
    return 0


def main() -> None:
    """Runs the program."""
    command_line.run_plain(run)
