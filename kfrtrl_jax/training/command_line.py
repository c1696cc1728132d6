"""The command line of the programs in `experiments`: flags, one-line errors, exit codes.

Exit codes: 0 success, 1 a failed run, 2 invalid input, 130 and 143 stopped by ctrl-C and SIGTERM.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags, logging

from kfrtrl_jax.errors import ConfigError, DataError, UnsupportedCellError, WorkdirError
from kfrtrl_jax.training import help
from kfrtrl_jax.training.config import call, resolve
from kfrtrl_jax.training.loop import Interrupted
from kfrtrl_jax.training.metrics import NonFiniteError
from kfrtrl_jax.training.notation import Written
from kfrtrl_jax.training.values import is_tree, one_line, plain, printable, quoted

flags.disclaim_key_flags()

# The lines of /proc/cpuinfo that determine a processor's instructions, on x86 and on ARM.
_PROCESSOR_LINES = (
    *("vendor_id", "cpu family", "model", "stepping", "flags"),
    *("Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part"),
)

_HELP = ("--help", "-help", "-h", "--h", "-?", "--?", "--helpshort", "-helpshort")
_DRY_RUN = "shows the network, the memory and the program of the run, and stops"

REFUSED = (ConfigError, DataError, WorkdirError, UnsupportedCellError)


class Invocation(NamedTuple):
    """The parsed command line.

    Attributes:
      config: from the config file; not yet checked.
      overrides: values by path ("estimator.name") that replace those of the config.
      path: of the config file.
      workdir: the folder for the results.
      dry_run: whether to show what would run, and stop.
    """

    config: Any
    overrides: dict[str, Any]
    path: str
    workdir: Path
    dry_run: bool = False


def define_flags(*, dry_run: bool = False) -> None:
    """Defines --config and --workdir; overrides such as --config.seed=1 need no definition.

    Args:
      dry_run: whether the program can show what it would do: defines --dry_run too.
    """
    flags.DEFINE_string(
        "config", None, "Config file; override fields by --config.section.field=value."
    )
    flags.DEFINE_string(
        "workdir", None, "Folder for the results; runs/NAME for configs/NAME.py by default."
    )
    if dry_run:
        flags.DEFINE_bool("dry_run", False, _DRY_RUN)


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
            print("stopped immediately; nothing saved since the last checkpoint", file=sys.stderr)
            return 130
        return 0

    app.run(main, flags_parser=_parse)


def run_plain(program: Callable[[], int]) -> None:
    """Runs a program that has its own flags and no config, and that returns the exit code."""

    def parse(argv: Sequence[str]) -> None:
        try:
            rest = flags.FLAGS(argv)
            if len(rest) > 1:
                raise ConfigError(
                    f"unexpected argument {rest[1]!r}; options are given as --name=value"
                )
            _hush_libraries()
        except (ConfigError, flags.Error) as error:
            sys.exit(_complain(error, 2))

    def main(_: None) -> int:
        try:
            return program()
        except REFUSED as error:
            return _complain(error, 2)

    app.run(main, flags_parser=parse)


def _parse(argv: Sequence[str]) -> Invocation:
    try:
        return _read(argv)
    except (ConfigError, flags.Error) as error:
        sys.exit(_complain(error, 2))
    except KeyboardInterrupt:
        print("stopped before anything was begun", file=sys.stderr)
        sys.exit(130)


def _read(argv: Sequence[str]) -> Invocation:
    """Reads flags and config file; with --help, prints what there is to know of them and exits.

    Raises:
      ConfigError: for a broken config file or override.
      flags.Error: for flags that do not exist.
    """
    try:
        expanded = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--flagfile cannot be read: {one_line(error)}") from None
    own, overrides = split_overrides(expanded)
    asks_for_help = any(argument in _HELP for argument in own[1:])
    rest = flags.FLAGS([argument for argument in own if argument not in _HELP])
    _hush_libraries()
    if flags.FLAGS.config is None and asks_for_help:
        print(help.overview(_further_flags()))
        sys.exit(0)
    if flags.FLAGS.config is None:
        raise ConfigError("--config is missing; for example --config=configs/copy.py")
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; options are given as --name=value")
    if flags.FLAGS.workdir == "":
        raise ConfigError("--workdir is empty; for example --workdir=runs/first")
    path, *arguments = flags.FLAGS.config.split(":", 1)
    config = call(path, "get_config", *arguments)
    if not is_tree(config):
        raise ConfigError(f"get_config() of {path} must return a ConfigDict, got {quoted(config)}")
    if asks_for_help:
        print(_help(path, config, overrides))
        sys.exit(0)
    workdir = flags.FLAGS.workdir or f"runs/{Path(path).stem}"
    dry_run = bool(_further_flags()) and flags.FLAGS.dry_run
    return Invocation(config, overrides, path, Path(workdir), dry_run)


def _help(path: str, config: Any, overrides: dict[str, Any]) -> str:
    if "task" not in config and "optimizer" not in config:
        return help.of_study(path, plain("config", config))
    return help.of_config(path, resolve(config, overrides), _further_flags())


def _further_flags() -> dict[str, str]:
    return {"--dry_run": _DRY_RUN} if "dry_run" in flags.FLAGS else {}


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Separates the overrides of a config from the other arguments.

    --config.a.b=value and --config.a.b value set a field; --config.a.b alone sets it to True, and
    --noconfig.a.b to False. Of two for the same field the last one counts.

    Returns:
      The other arguments, and the values by path, as they are written.

    Raises:
      ConfigError: for --noconfig.a.b=value.
    """
    others: list[str] = []
    overrides: dict[str, Any] = {}
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        match = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
        if argument == "--":
            return [*others, argument, *waiting], overrides
        if match is None:
            others.append(argument)
            continue
        negated, path, value = match.groups()
        if negated and value is not None:
            raise ConfigError(
                f"--noconfig.{path} means False and takes no value, got {quoted(value)}"
            )
        if value is not None:
            overrides[path] = Written(value)
        elif not negated and waiting and not waiting[0].startswith("--"):
            overrides[path] = Written(waiting.pop(0))
        else:
            overrides[path] = not negated
    return others, overrides


def _complain(error: BaseException, code: int) -> int:
    print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    return code


def _hush_libraries() -> None:
    """Silences third-party logs below warnings, unless --verbosity is given."""
    verbosity = flags.FLAGS["verbosity"]
    if verbosity.using_default_value:
        verbosity.value, verbosity.using_default_value = logging.WARNING, False


def _keep_compiled_programs() -> None:
    """Caches compiled programs between runs, so that a repeated program starts at once.

    The cache is in $XDG_CACHE_HOME/kfrtrl_jax (~/.cache/kfrtrl_jax), with a folder per kind of
    processor: a program compiled for one may not run on another, and JAX does not tell processors apart
    if they share a home directory. JAX's own JAX_COMPILATION_CACHE_DIR moves the cache to exactly that
    folder, and JAX_ENABLE_COMPILATION_CACHE=0 turns it off. If the folder cannot be written, nothing is
    cached.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is not None or not settings.jax_enable_compilation_cache:
        return
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(base) / "kfrtrl_jax" / processor_name()
    try:
        # For its owner alone: anyone who can write there could run code in the owner's name.
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        logging.info("compiled programs are not cached: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))


def processor_name() -> str:
    """The processor's architecture, with a digest of its instruction set as far as it is known."""
    described = platform.processor()
    with contextlib.suppress(OSError):
        # The first processor's entry, without its number and clock rate.
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        described = "\n".join(line for line in lines if line.startswith(_PROCESSOR_LINES))
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
