"""Tables of a sweep: kfrtrl tabulate --sweep=WORKDIR --rows=task --out=PREFIX.

Writes PREFIX.md and PREFIX.json (overrides and results of every trial). An unfinished sweep gives a
table of the trials that are done.
"""

from __future__ import annotations

import pathlib

from absl import flags

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import command_line, tables, trials, workdir

_SWEEP = flags.DEFINE_string("sweep", "", "The workdir of `kfrtrl sweep`.")
_ROWS = flags.DEFINE_list("rows", ["task"], "Overrides in the rows, such as task,cell.")
_OUT = flags.DEFINE_string("out", "", "Prefix of the files to write.")


def run() -> int:
    """Reads the sweep and writes the two files."""
    if not (_SWEEP.value and _OUT.value):
        raise ConfigError("--sweep and --out are needed: the workdir of a sweep, and a prefix")
    done = trials.finished(pathlib.Path(_SWEEP.value), command_line.warn)
    overrides, results = ([trial[key] for trial in done] for key in ("overrides", "result"))
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    text = tables.pivot(overrides, results, _ROWS.value)
    workdir.write_text(workdir.with_ending(out, "md"), text)
    rows = [{**own, **result} for own, result in zip(overrides, results, strict=True)]
    workdir.write_json(workdir.with_ending(out, "json"), {"trials": rows})
    print(text)
    return 0


def main() -> None:
    """Runs the program."""
    command_line.run_plain(run)
