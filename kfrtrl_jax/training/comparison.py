"""Runs and sweeps side by side: one picture, one table of records, and what was run."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from kfrtrl_jax._src.compositions.values import suggest
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import display, finished, plots, workdir
from kfrtrl_jax.training.finished import Finished


def compare(
    pairs: Sequence[str],
    out: Path,
    fields: Sequence[str],
    title: str,
    warn: Callable[[str], None],
) -> None:
    """Reads runs and sweeps, and writes OUT.png, OUT.csv and OUT.json.

    Args:
      pairs: NAME=WORKDIR. Runs of the same name, such as seeds, are one curve: their mean and range. A
        sweep has a curve for each of its settings, over its seeds.
      out: prefix of the files.
      fields: of the records, one panel and one column each.
      title: above the picture.
      warn: called with a line if a log has lost lines, or if trials of a sweep are not finished.

    Raises:
      ConfigError: if a pair is none, if two different runs would have the same name, or if there is no
        field or one that no record has as a number.
      WorkdirError: if no run of a folder is finished, or a file is damaged.
    """
    groups = _read(pairs, warn)
    named = _named(groups)
    _require_fields(fields, named.values())
    about = {name: {"config": run.config, "summary": run.summary} for name, run in named.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    words = display.common_words([run.summary for run in named.values()])
    curves = {label: [run.records for run in runs] for label, runs in groups.items()}
    plots.plot_groups(curves, workdir.with_ending(out, "png"), fields, title, words)
    workdir.write_json(workdir.with_ending(out, "json"), about)
    with open(workdir.with_ending(out, "csv"), "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "step", *fields])
        for name, run in named.items():
            for record in run.records:
                writer.writerow([name, record["step"], *(record.get(f, "") for f in fields)])


def _read(pairs: Sequence[str], warn: Callable[[str], None]) -> dict[str, list[Finished]]:
    """The runs by their curve."""
    parts = [pair.partition("=")[::2] for pair in pairs]
    if not parts or not all(folder for _, folder in parts):
        raise ConfigError("--runs takes NAME=WORKDIR pairs, for example --runs=kf_rtrl=runs/copy")
    groups: dict[str, list[Finished]] = {}
    for name, folder in parts:
        for setting, runs in finished.read_settings(Path(folder), warn).items():
            label = ": ".join(filter(None, [name, setting]))
            groups.setdefault(label, []).extend(runs)
    return groups


def _require_fields(fields: Sequence[str], runs: Iterable[Finished]) -> None:
    """Refuses fields that no record has as a number, such as misspelled ones."""
    known = {
        name
        for run in runs
        for record in run.records
        for name, value in record.items()
        if isinstance(value, (int, float))
    }
    known -= {"step"}
    if not fields:
        raise ConfigError(f"--fields is empty{suggest('', sorted(known))}")
    for field in fields:
        if known and field not in known:
            raise ConfigError(
                f"--fields: no record has the number {field!r}{suggest(field, known)}"
            )


def _named(groups: Mapping[str, Sequence[Finished]]) -> dict[str, Finished]:
    """The runs by names of their own: those of their groups, with the seed where there are several."""
    named: dict[str, Finished] = {}
    for group, runs in groups.items():
        for run in runs:
            name = group if len(runs) == 1 else f"{group}, seed {run.config['seed']}"
            if name in named:
                raise ConfigError(f"--runs has {name!r} twice: give runs that differ other names")
            named[name] = run
    return named
