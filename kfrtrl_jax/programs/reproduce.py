"""Runs a study of the papers: kfrtrl reproduce --study=copy --workdir=DIR --scale=cpu.

A study is a sweep (`configs/reproduce_NAME.py`) and can be stopped and continued like one; a larger
scale continues a smaller one. At the end, and at any moment with --only_collect, what it has come to is
written to a small file, DIR/records.json, which `kfrtrl report` renders. With --time_methods a
step of each method is timed alone, which methods of different costs are compared by. With --only,
--only_task, --only_seed and --add the parts of a study are run on several machines and come together in
one file.
"""

from __future__ import annotations

import pathlib

from absl import flags

from kfrtrl_jax.studies.reproduction import records, study, times
from kfrtrl_jax.training import command_line, display, engines, sweep

_STUDY = flags.DEFINE_string("study", "copy", f"One of {', '.join(study.NAMES)}.")
_SCALE = flags.DEFINE_string("scale", "cpu", f"One of {', '.join(study.SCALES)}.")
_FIRST = flags.DEFINE_multi_string(
    "first", [], "Runs this method before the others; may be given several times."
)
_ONLY = flags.DEFINE_multi_string(
    "only", [], "Runs this method alone; may be given several times, on several machines."
)
_ONLY_TASK = flags.DEFINE_multi_string("only_task", [], "Likewise with a task, by its text.")
_ONLY_SEED = flags.DEFINE_multi_integer("only_seed", [], "Likewise with a seed.")
_GROUP_SIZE = flags.DEFINE_integer(
    "group_size",
    0,
    "As for `kfrtrl sweep`: the most trials side by side as one program.",
    lower_bound=0,
)
_ENGINE = flags.DEFINE_string("engine", "local", "Where groups of trials run, see `kfrtrl sweep`.")
_ONLY_COLLECT = flags.DEFINE_bool("only_collect", False, "Runs nothing; the sweep may be running.")
_TIME = flags.DEFINE_bool(
    "time_methods",
    False,
    "Times a step of each method alone, in turns, on a machine left in peace.",
)
_RECORDS = flags.DEFINE_string("records", "", "The file to write; WORKDIR/records.json by default.")
_ADD = flags.DEFINE_bool(
    "add",
    False,
    "Keeps what the file has of trials that are not, or have fewer steps, here; and its times, unless "
    "as many methods were timed here.",
)


def run(invocation: command_line.Invocation) -> None:
    """Runs those trials of the study that have no result yet, and collects all."""
    whole = study.load(_STUDY.value, _SCALE.value)
    whole.require_config(invocation.path)
    path = pathlib.Path(_RECORDS.value or invocation.workdir / "records.json")
    records.require_file(path)
    chosen = whole.only(_ONLY.value, _ONLY_TASK.value, _ONLY_SEED.value).first(_FIRST.value)
    if invocation.dry_run:
        print(
            sweep.describe(
                chosen.config, chosen.trials, invocation.overrides, group_size=_GROUP_SIZE.value
            )
        )
        return
    if not _ONLY_COLLECT.value:
        engine = engines.make(_ENGINE.value)
        sweep.run_sweep(
            chosen.config,
            chosen.trials,
            invocation.workdir,
            invocation.overrides,
            engine,
            group_size=_GROUP_SIZE.value,
            wandb=invocation.wandb,
        )
    if _TIME.value:
        measured = times.measure(chosen, invocation.overrides, say=display.say)
        times.write(invocation.workdir, measured)
    record = records.collect(_STUDY.value, invocation.workdir, invocation.overrides)
    if _ADD.value and path.exists():
        own, record = record, records.merge(record, records.read_study(path))
        if times.of(own) and times.of(own) != times.of(record):
            display.say(
                f"note: {path} keeps its times of {len(times.of(record))} methods, which took turns; "
                f"those of the {len(times.of(own))} methods timed here are not comparable with them"
            )
    records.write(path, record)
    display.say(f"records of {len(record['trials'])} trials: {path}")


def main() -> None:
    """Runs the program."""
    command_line.define_flags(trains=True)
    command_line.run(run, config_of=lambda: study.path_of(_STUDY.value))
