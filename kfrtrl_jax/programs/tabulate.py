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
    path = pathlib.Path(_SWEEP.value) / trials.RESULTS
    if not path.is_file():
        raise ConfigError(
            f"{path.parent} has no {trials.RESULTS}: no group of its trials is finished"
        )
    found = workdir.read_document(path)["trials"]
    done = [(trial["overrides"], trial["result"]) for trial in found if trial["result"]]
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    text = tables.pivot([own for own, _ in done], [result for _, result in done], _ROWS.value)
    workdir.write_text(workdir.with_ending(out, "md"), text)
    workdir.write_json(workdir.with_ending(out, "json"), {"trials": [{**o, **r} for o, r in done]})
    print(text)
    return 0


def main() -> None:
    """Runs the program."""
    command_line.run_plain(run)
