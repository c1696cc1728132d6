"""Compares runs and sweeps: kfrtrl compare --runs=NAME=WORKDIR,... --out=PREFIX.

Runs of the same name, such as seeds, are one curve: their mean and range. A sweep has a curve for each
of its settings, over its seeds. Writes PREFIX.png, PREFIX.csv (run, step and the fields) and
PREFIX.json (configs and summaries).
"""

from __future__ import annotations

import pathlib

from absl import flags

from kfrtrl_jax.training import command_line, comparison

_RUNS = flags.DEFINE_list("runs", [], "NAME=WORKDIR pairs of `kfrtrl train` or `kfrtrl sweep`.")
_OUT = flags.DEFINE_string("out", "comparison", "Prefix of the files to write.")
_FIELDS = flags.DEFINE_list(
    "fields", ["running_loss"], "Fields of metrics.jsonl, one panel each, such as sequence_length."
)
_TITLE = flags.DEFINE_string("title", "", "Above the picture.")


def run() -> int:
    """Reads the runs and writes the three files."""
    out = pathlib.Path(_OUT.value)
    comparison.compare(_RUNS.value, out, _FIELDS.value, _TITLE.value, command_line.warn)
    return 0


def main() -> None:
    """Runs the program."""
    command_line.run_plain(run)
