"""The command line of `experiments.train` up to the moment when a run would begin, in this process."""

from __future__ import annotations

import contextlib
import io
import sys
import time
import unittest.mock
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags

from kfrtrl_jax.programs import train as command
from kfrtrl_jax.training import command_line, train


class Outcome(NamedTuple):
    """What a command did.

    Attributes:
      code: its exit code; None if it raised something, which is in `error`.
      out: what it printed.
      error: what it printed to stderr.
      seconds: of processor time that it took.
    """

    code: int | None
    out: str
    error: str
    seconds: float


class Started(Exception):  # noqa: N818 - not an error
    """A run would begin now."""


def start(arguments: Sequence[str], begin: Any = None, joins: bool = True) -> Outcome:
    """What a command does.

    Args:
      arguments: of the command.
      begin: (resolved config, workdir, W&B project) -> anything, called in place of the run.
      joins: whether the program can be one of several processes.
    """
    out, error = io.StringIO(), io.StringIO()
    begun = time.process_time()
    with (
        _fresh_flags(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        unittest.mock.patch.object(train, "train", begin or (lambda *_: None)),
        unittest.mock.patch.object(command_line, "_keep_compiled_programs"),
        unittest.mock.patch.object(sys, "argv", [__name__, *arguments]),
    ):
        try:
            command_line.run(command.run, joins=joins)
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException as raised:
            code = None
            error.write(f"Traceback: {type(raised).__name__}: {raised}\n")
    return Outcome(code, out.getvalue(), error.getvalue(), time.process_time() - begun)


@contextlib.contextmanager
def _fresh_flags() -> Iterator[None]:
    """The flags of the programs, as before they are parsed; those of other tests are kept."""
    if "config" not in flags.FLAGS:
        command_line.define_flags(trains=True)
    before = {name: flags.FLAGS[name].value for name in flags.FLAGS}
    for name in ("config", "workdir", "dry_run", "wandb", *command_line._PROCESSES):
        flags.FLAGS[name].unparse()
    flags.FLAGS.unparse_flags()
    try:
        yield
    finally:
        flags.FLAGS.mark_as_parsed()
        for name, value in before.items():
            flags.FLAGS[name].value = value
