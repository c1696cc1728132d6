"""Measures speeds: `python -m experiments.benchmark --suite=step --out=FILE.json`."""

from __future__ import annotations

import json
import pathlib
import platform
import sys

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from configs import copy
from kfrtrl_jax import benchmarking
from kfrtrl_jax.training import command_line

SUITES = {"step": benchmarking.STEP_SUITE, "flax": benchmarking.FLAX_SUITE}

_SUITE = flags.DEFINE_enum("suite", "step", list(SUITES), "What to measure.")
_OUT = flags.DEFINE_string("out", None, "The JSON file to write.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Runs of each row and of its floor.", lower_bound=1)


def main() -> int:
    """Prints a table and writes the samples."""
    console = Console()
    table = Table("name", "n", "batch", "ratio", "min", "max", "ms", "floor ms")
    rows = []
    for case in SUITES[_SUITE.value]:
        row = benchmarking.measure(
            case, copy.get_config(), suite=_SUITE.value, rounds=_ROUNDS.value
        )
        rows.append(row)
        table.add_row(
            row.name,
            str(row.n),
            str(row.batch),
            f"{row.ratio:.2f}",
            f"{row.ratio_min:.2f}",
            f"{row.ratio_max:.2f}",
            f"{1e3 * row.seconds:.2f}",
            f"{1e3 * row.floor_seconds:.2f}",
        )
    console.print(table)
    if _OUT.value:
        out = pathlib.Path(_OUT.value)
        out.parent.mkdir(parents=True, exist_ok=True)
        result = {
            "device": str(jax.devices()[0].device_kind),
            "processor": platform.processor() or platform.machine(),
            "jax": jax.__version__,
            "python": sys.version.split()[0],
            "rows": [row._asdict() for row in rows],
        }
        out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    command_line.run_plain(main)
