"""Renders what the studies have come to: kfrtrl report --out=DIR.

Reads the committed records alone (experiments/results of a clone) and writes DIR/RESULTS.md,
DIR/index.html, a page that opens without a network, and a picture of each study that has curves or many
tasks. With --readme=README.md the leaderboard of that page is made anew too.
"""

from __future__ import annotations

import pathlib

from absl import flags

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies.reproduction import leaderboard, page, report, results
from kfrtrl_jax.training import command_line, display, workdir

_RESULTS = flags.DEFINE_string("results", "experiments/results", "The folder of the records.")
_OUT = flags.DEFINE_string("out", "runs/report", "The folder to write to.")

_README = flags.DEFINE_string("readme", "", "A page with a leaderboard between its marks.")


def run() -> int:
    """Writes the report."""
    out = pathlib.Path(_OUT.value)
    found = results.read(pathlib.Path(_RESULTS.value))
    if not found.records:
        raise ConfigError(
            f"{_RESULTS.value} has no {results.RECORDS}/STUDY.json; give by --results=DIR the folder "
            "experiments/results of a clone, or one with what `kfrtrl reproduce --records=FILE` writes"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, render in (("RESULTS.md", report.render), ("index.html", page.render)):
        workdir.write_text(out / name, render(found))
        display.say(f"results: {out / name}")
    for path in report.draw(found, out):
        display.say(f"picture: {path}")
    if _README.value:
        readme = pathlib.Path(_README.value)
        text = leaderboard.insert(readme.read_text(), leaderboard.render(found))
        workdir.write_text(readme, text)
        display.say(f"leaderboard: {readme}")
    return 0


def main() -> None:
    """Runs the program."""
    command_line.run_plain(run)
