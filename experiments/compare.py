"""Compares runs: python -m experiments.compare --runs=NAME=WORKDIR,... --out=PREFIX.

Runs of the same name, such as seeds, are one curve: their mean and range. Writes PREFIX.png, PREFIX.csv
(run, step and the fields) and PREFIX.json (configs and summaries).
"""

from __future__ import annotations

if __name__ == "__main__":
    from experiments import start

    start.begin()

import csv
import pathlib
import sys

from absl import flags

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import command_line, display, finished, metrics, plots, workdir

_RUNS = flags.DEFINE_list("runs", [], "NAME=WORKDIR pairs of `experiments.train`.")
_OUT = flags.DEFINE_string("out", "comparison", "Prefix of the files to write.")
_FIELDS = flags.DEFINE_list(
    "fields", ["running_loss"], "Fields of metrics.jsonl, one panel each, such as sequence_length."
)
_TITLE = flags.DEFINE_string("title", "", "Above the picture.")


def main() -> int:
    """Reads the runs and writes the three files."""
    pairs = [pair.partition("=")[::2] for pair in _RUNS.value]
    if not pairs or not all(folder for _, folder in pairs):
        raise ConfigError("--runs takes NAME=WORKDIR pairs, for example --runs=kf_rtrl=runs/copy")
    about, records = {}, {}
    groups: dict[str, list[list[metrics.Record]]] = {}
    for name, folder in pairs:
        path = pathlib.Path(folder)
        run = finished.read_run(path, lambda line: print(f"warning: {line}", file=sys.stderr))
        alone = sum(other == name for other, _ in pairs) == 1
        label = name if alone else f"{name}, seed {run.config['seed']}"
        if label in about:
            raise ConfigError(f"--runs has {label!r} twice: give runs that differ other names")
        about[label] = {"config": run.config, "summary": run.summary}
        records[label] = run.records
        groups.setdefault(name, []).append(records[label])
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    words = display.common_words([each["summary"] for each in about.values()])
    plots.plot_groups(groups, out.with_suffix(".png"), _FIELDS.value, _TITLE.value, words)
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
