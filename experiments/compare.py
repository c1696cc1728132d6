"""Compares runs: python -m experiments.compare --runs=NAME=WORKDIR,... --out=PREFIX.

Writes PREFIX.png, PREFIX.csv (run, step and the fields) and PREFIX.json (configs and summaries).
"""

from __future__ import annotations

import csv
import pathlib

from absl import flags

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import command_line, metrics, plots, workdir

_RUNS = flags.DEFINE_list("runs", [], "NAME=WORKDIR pairs of `experiments.train`.")
_OUT = flags.DEFINE_string("out", "comparison", "Prefix of the files to write.")
_FIELDS = flags.DEFINE_list(
    "fields", ["running_loss"], "Fields of metrics.jsonl, one panel each, such as sequence_length."
)
_TITLE = flags.DEFINE_string("title", "", "Above the picture.")


def main() -> int:
    """Reads the runs and writes the three files."""
    folders = dict(run.partition("=")[::2] for run in _RUNS.value)
    if not folders or not all(folders.values()):
        raise ConfigError("--runs takes NAME=WORKDIR pairs, for example --runs=kf_rtrl=runs/copy")
    about, records = {}, {}
    for name, folder in folders.items():
        path = pathlib.Path(folder)
        about[name] = {
            "config": workdir.read_json(path / workdir.CONFIG),
            "summary": workdir.read_json(path / "summary.json"),
        }
        records[name] = metrics.read(path / metrics.METRICS)
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    units = {run["summary"].get("loss_unit", "") for run in about.values()}
    unit = units.pop() if len(units) == 1 else ""
    plots.plot_runs(records, out.with_suffix(".png"), _FIELDS.value, _TITLE.value, unit)
    workdir.write_json(out.with_suffix(".json"), about)
    with open(out.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "step", *_FIELDS.value])
        for name, lines in records.items():
            for line in lines:
                writer.writerow([name, line["step"], *(line.get(f, "") for f in _FIELDS.value)])
    return 0


if __name__ == "__main__":
    command_line.run_plain(main)
