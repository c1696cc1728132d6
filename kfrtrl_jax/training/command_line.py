"""What the programs in `experiments` share: flags, refusals in one line, exit codes.

Exit codes: 0 done, 1 a run that failed, 2 refused input, 130 and 143 stopped by ctrl-C and SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
from absl import app, flags
from ml_collections import config_flags

from kfrtrl_jax.errors import ConfigError, DataError, UnsupportedCellError, WorkdirError
from kfrtrl_jax.training.config import call, load_module, one_line
from kfrtrl_jax.training.loop import Interrupted
from kfrtrl_jax.training.metrics import NonFiniteError

flags.disclaim_key_flags()

REFUSED = (ConfigError, DataError, WorkdirError, UnsupportedCellError)


class Invocation(NamedTuple):
    """What the command line says.

    Attributes:
      config: from the config file, with the overrides applied; not yet checked.
      overridden: paths of the overrides ("estimator.name").
      workdir: the folder for the results.
      module: the config file.
      path: the config file's.
    """

    config: Any
    overridden: frozenset[str]
    workdir: Path
    module: ModuleType
    path: str


def define_flags() -> None:
    """Defines --config, with its overrides, and --workdir."""
    config_flags.DEFINE_config_file(
        "config",
        help_string="Config file; override fields by --config.section.field=value.",
        lock_config=False,
        accept_new_attributes=True,
    )
    flags.DEFINE_string(
        "workdir", None, "Folder for the results; runs/NAME for configs/NAME.py by default."
    )


def run(program: Callable[[Invocation], Any]) -> None:
    """Parses the command line, runs the program and exits."""

    def main(invocation: Invocation) -> int:
        _keep_compiled_programs()
        try:
            program(invocation)
        except REFUSED as error:
            return _complain(error, 2)
        except NonFiniteError as error:
            return _complain(error, 1)
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            return stop.exit_code
        except KeyboardInterrupt:
            print("stopped at once, nothing saved since the last checkpoint", file=sys.stderr)
            return 130
        return 0

    app.run(main, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> Invocation:
    try:
        return _read(argv)
    except (ConfigError, flags.Error) as error:
        sys.exit(_complain(error, 2))


def _read(argv: Sequence[str]) -> Invocation:
    """Reads flags and config file.

    Raises:
      ConfigError: for a broken config file or override.
      flags.Error: for flags that do not exist.
    """
    path = _config_path(argv)
    file, *arguments = (path or "").split(":", 1)
    if path is not None:
        # Read here first: what absl makes of a config file's own errors is hard to read.
        module = load_module(file)
        call(file, module, "get_config", *arguments)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error:
        raise
    except Exception as error:
        raise ConfigError(f"an override cannot be applied: {one_line(error)}") from error
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS["verbosity"].value = -1
    if path is None:
        raise ConfigError("--config is missing; for example --config=configs/copy.py")
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; options are given as --name=value")
    workdir = flags.FLAGS.workdir or f"runs/{Path(file).stem}"
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    return Invocation(flags.FLAGS.config, frozenset(overrides), Path(workdir), module, file)


def _config_path(argv: Sequence[str]) -> str | None:
    for i, argument in enumerate(argv[1:], 1):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if equals else argv[i + 1] if i + 1 < len(argv) else None
    return None


def _complain(error: BaseException, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _keep_compiled_programs() -> None:
    """Compiled programs are kept between runs, so that a resumed run starts at once."""
    if jax.config.read("jax_compilation_cache_dir") is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "kfrtrl_jax"))
