"""Renders what the studies have come to: python -m experiments.report --out=DIR.

Reads the committed records alone (experiments/results) and writes DIR/RESULTS.md.
"""

from __future__ import annotations

if __name__ == "__main__":
    from experiments import start

    start.begin()

import pathlib

from absl import flags

from kfrtrl_jax.studies.reproduction import report
from kfrtrl_jax.training import command_line, display, workdir

_RESULTS = flags.DEFINE_string("results", "experiments/results", "The folder of the records.")
_OUT = flags.DEFINE_string("out", "runs/report", "The folder to write to.")


def main() -> int:
    """Writes the report."""
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    workdir.write_text(out / "RESULTS.md", report.render(pathlib.Path(_RESULTS.value)))
    display.say(f"results: {out / 'RESULTS.md'}")
    return 0


if __name__ == "__main__":
    command_line.run_plain(main)
