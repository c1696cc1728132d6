"""Measures speeds and memory: `kfrtrl benchmark --suite=step --out=FILE.json`.

Suites: step (a training step against its floor), gpu (rows for accelerators only, with the time of a
million steps on the Penn Treebank in the folder KFRTRL_DATA_DIR), flax (an unmodified Flax cell against
ours), scaling (time against width, lanes and rank; with a picture beside FILE.json), peers (other
packages; needs the extra "peers"), memory, parts (what a step's time is spent on), stream (one call
per sample, from Python, against a scan), and compile (from the start to the first finished chunk; the
import of the library).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import re
import sys
from collections.abc import Iterable
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies.benchmarking import (
    floors,
    memory,
    parts,
    peers,
    scaling,
    startup,
    steps,
    stream,
)
from kfrtrl_jax.studies.benchmarking.timing import Measurement
from kfrtrl_jax.training import command_line, made_with
from kfrtrl_jax.training import config as configs

# All measurements, by suite and name.
SUITES: dict[str, dict[str, Any]] = {
    "step": {f"{c.name} n{c.n} b{c.batch}": c for c in steps.STEP_SUITE},
    "gpu": {f"{c.name} n{c.n} b{c.batch}": c for c in steps.GPU_SUITE},
    "flax": {f"{c.name} n{c.n} b{c.batch}": c for c in steps.FLAX_SUITE},
    "scaling": {f"{s.name} against {s.variable}": s for s in scaling.SCALING_SUITE},
    "peers": {f"{p.name} n{p.n} b{p.batch}": p for p in peers.PEERS_SUITE},
    "memory": {f"{c.name} n{c.n} b{c.batch}": c for c in memory.MEMORY_SUITE},
    "parts": {f"{p.name} n{p.n} b{p.batch}": p for p in parts.PARTS_SUITE},
    "stream": {f"{c.name} n{c.n} b{c.batch}": c for c in stream.STREAM_SUITE},
    "compile": {name: name for name in (*startup.COMPILE_SUITE, startup.IMPORT)},
}

_SUITE = flags.DEFINE_enum("suite", "step", list(SUITES), "What to measure.")
_OUT = flags.DEFINE_string("out", None, "The JSON file to write.")
_ROWS = flags.DEFINE_string("rows", "", "Measure only rows that match this regular expression.")
_ROUNDS = flags.DEFINE_integer(
    "rounds", None, "Runs of each row and of its floor; 9, or 3 processes.", lower_bound=1
)


def run() -> int:
    """Prints a table and writes the samples."""
    command_line.require_device()
    suite, rounds = _SUITE.value, _ROUNDS.value
    chosen = choose(suite, _ROWS.value)
    require(suite, chosen)
    console = Console(width=None if sys.stdout.isatty() else 150)
    header = describe()
    rows: list[Measurement] = []
    fits: list[scaling.PowerLaw] = []
    for name, case in chosen.items():
        with console.status(f"measuring {name}"):
            new, fit = measure_case(suite, case, rounds)
        rows += new
        fits += fit
        for row in new:
            console.print(one_line(row), highlight=False, soft_wrap=True)
    console.print(table(rows))
    for row in rows:
        if suite == "gpu" and row.seconds is not None:
            hours = row.seconds * 1e6 / 3600
            console.print(
                f"{row.name} n{row.n} b{row.batch}: {hours:.2f} hours for a million steps"
            )
    for power in fits:
        console.print(
            f"{power.name}: time ~ {power.variable}^{power.exponent:.2f} "
            f"(^{power.exponent_large:.2f} for the larger half; the product alone "
            f"^{power.floor_exponent:.2f}; predicted ^{power.predicted:g})",
            highlight=False,
        )
    if _OUT.value:
        out = pathlib.Path(_OUT.value)
        out.parent.mkdir(parents=True, exist_ok=True)
        result = {**header, "suite": suite, "rows": [row._asdict() for row in rows]}
        if fits:
            result["fits"] = [fit._asdict() for fit in fits]
            scaling.plot(fits, out.with_suffix(".png"))
        out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def choose(suite: str, pattern: str) -> dict[str, Any]:
    """The rows of a suite whose name matches the pattern.

    Raises:
      ConfigError: if the pattern is not a regular expression, or matches no row.
    """
    try:
        found = {name: case for name, case in SUITES[suite].items() if re.search(pattern, name)}
    except re.error as error:
        raise ConfigError(f"--rows={pattern} is not a regular expression: {error}") from None
    if not found:
        raise ConfigError(
            f"--rows={pattern} matches no row of suite {suite}: {', '.join(SUITES[suite])}"
        )
    return found


def require(suite: str, chosen: dict[str, Any]) -> None:
    """Refuses a suite that cannot be measured here.

    Raises:
      ConfigError: if the machine or the environment lacks something that the suite needs.
    """
    if suite == "gpu" and jax.default_backend() == "cpu":
        raise ConfigError(
            "suite gpu needs an accelerator, and JAX sees none; on CPUs use --suite=step"
        )
    if suite == "peers":
        peers.require({peer.package for peer in chosen.values()})


def measure_case(
    suite: str, case: Any, rounds: int | None
) -> tuple[list[Measurement], list[scaling.PowerLaw]]:
    """Measures one case: its rows, and its power laws if it is a series."""
    config = configs.call("copy", "get_config")
    if suite == "scaling":
        rows, fit = scaling.measure_scaling(case, config, suite=suite, rounds=rounds or 5)
        return rows, [fit]
    if suite == "memory":
        return memory.measure_memory(case, config, suite=suite, rounds=rounds or 3), []
    if suite == "peers":
        return [peers.measure_peer(case, suite=suite, rounds=rounds or 9)], []
    if suite == "parts":
        return [parts.measure_part(case, suite=suite, rounds=rounds or 9)], []
    if case == startup.IMPORT:
        return [startup.measure_import(suite=suite, rounds=rounds or 9)], []
    if suite == "stream":
        return [stream.measure_stream(case, suite=suite, rounds=rounds or 9)], []
    if suite == "compile":
        sizes = {"n": config.cell.hidden_size, "batch": config.task.batch_size}
        arguments = ["--config=copy"]
        return [
            startup.measure_startup(case, arguments, suite=suite, rounds=rounds or 3, **sizes)
        ], []
    config = configs.call(case.config, "get_config")
    return [steps.measure_step(case, config, suite=suite, rounds=rounds or 9)], []


def describe() -> dict[str, Any]:
    """The machine, its load before the measurements, and the versions of packages."""
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    return {
        "device": str(jax.devices()[0].device_kind),
        "processor": platform.processor() or platform.machine(),
        "cores": made_with.cores(),
        "load_average": load,
        "copy_bytes_per_second": round(floors.copy_bandwidth()),
        "python": sys.version.split()[0],
        **versions(("jax", "jaxlib", "numpy", "flax", "torch", "braintrace")),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def one_line(row: Measurement) -> str:
    """A measurement as a line of text."""
    target = "" if row.target is None else f", target {row.target:.2f}: {verdict(row)}"
    return f"{row.name} n{row.n} b{row.batch}: {row.ratio:.2f}{target}; floor: {row.floor}"


def table(rows: Iterable[Measurement]) -> Table:
    """All measurements as a table."""
    result = Table("name", "n", "batch", "ratio", "min", "max", "target", "", "measured", "floor")
    for row in rows:
        result.add_row(
            row.name,
            str(row.n),
            str(row.batch),
            f"{row.ratio:.2f}",
            f"{row.ratio_min:.2f}",
            f"{row.ratio_max:.2f}",
            "" if row.target is None else f"{row.target:.2f}",
            verdict(row),
            _quantity(row.seconds, row.bytes),
            _quantity(row.floor_seconds, row.floor_bytes),
        )
    return result


def verdict(row: Measurement) -> str:
    """Whether the target was "reached" or "missed"; "" without a target."""
    return "" if row.met is None else "reached" if row.met else "missed"


def _quantity(seconds: float | None, count: float | None) -> str:
    if seconds is not None:
        return f"{1e3 * seconds:.3f} ms"
    return "" if count is None else f"{count / 2**20:.2f} MiB"


def main() -> None:
    """Runs the program."""
    command_line.run_plain(run)
