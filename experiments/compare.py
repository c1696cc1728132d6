"""Compares runs and sweeps: python -m experiments.compare --runs=NAME=WORKDIR,... --out=PREFIX.

Runs of the same name, such as seeds, are one curve: their mean and range. A sweep has a curve for each
of its settings, over its seeds. Writes PREFIX.png, PREFIX.csv (run, step and the fields) and
PREFIX.json (configs and summaries).
"""

from __future__ import annotations

if __name__ == "__main__":
    from experiments import start

    start.begin()

import csv
import pathlib
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import command_line, display, finished, plots, workdir

_RUNS = flags.DEFINE_list(
    "runs", [], "NAME=WORKDIR pairs of `experiments.train` or `experiments.sweep`."
)
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
    groups: dict[str, list[finished.Finished]] = {}
    for name, folder in pairs:
        found = finished.read_settings(pathlib.Path(folder), _warn)
        for setting, runs in found.items():
            label = ": ".join(filter(None, [name, setting]))
            groups.setdefault(label, []).extend(runs)
    named = _named(groups)
    about = {name: {"config": run.config, "summary": run.summary} for name, run in named.items()}
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    words = display.common_words([run.summary for run in named.values()])
    curves = {label: [run.records for run in runs] for label, runs in groups.items()}
    plots.plot_groups(curves, out.with_suffix(".png"), _FIELDS.value, _TITLE.value, words)
    workdir.write_json(out.with_suffix(".json"), about)
    with open(out.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "step", *_FIELDS.value])
        for name, run in named.items():
            for line in run.records:
                writer.writerow([name, line["step"], *(line.get(f, "") for f in _FIELDS.value)])
    return 0


def _named(groups: Mapping[str, Sequence[finished.Finished]]) -> dict[str, finished.Finished]:
    """The runs by names of their own: those of their groups, with the seed where there are several.

    Raises:
      ConfigError: if two have the same.
    """
    named: dict[str, finished.Finished] = {}
    for group, runs in groups.items():
        for run in runs:
            name = group if len(runs) == 1 else f"{group}, seed {run.config['seed']}"
            if name in named:
                raise ConfigError(f"--runs has {name!r} twice: give runs that differ other names")
            named[name] = run
    return named


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


if __name__ == "__main__":
    command_line.run_plain(main)
