"""The command line of the programs: flags, one-line errors, exit codes.

Exit codes: 0 success, 1 a failed run, 2 invalid input or a missing device, 128 + n stopped by signal n.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags, logging

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax._src.compositions.notation import Written
from kfrtrl_jax._src.compositions.values import is_tree, one_line, plain, quoted
from kfrtrl_jax.errors import ConfigError, DataError, UnsupportedCellError, WorkdirError
from kfrtrl_jax.training import faults, help, on_wandb, processes
from kfrtrl_jax.training.checkpoints import SaveError
from kfrtrl_jax.training.config import call, resolve
from kfrtrl_jax.training.metrics import NonFiniteError
from kfrtrl_jax.training.signals import Interrupted, release_signals
from kfrtrl_jax.training.trials import SweepError

# The lines of /proc/cpuinfo that determine a processor's instructions, on x86 and on ARM.
_PROCESSOR_LINES = (
    *("vendor_id", "cpu family", "model", "stepping", "flags"),
    *("Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part"),
)

_HELP = ("--help", "-help", "-h", "--h", "-?", "--?", "--helpshort", "-helpshort")
# What each program has; --help says more of these.
_COMMON = ("config", "workdir")
_PROCESSES = {
    "coordinator": "HOST:PORT of process 0, for one run in several processes; or auto",
    "processes": "how many there are",
    "process": "which one this is, from 0",
}

REFUSED = (ConfigError, DataError, WorkdirError, UnsupportedCellError)


class Invocation(NamedTuple):
    """The parsed command line.

    Attributes:
      config: from the config file; not yet checked.
      overrides: values by path ("estimator.name") that replace those of the config.
      path: of the config file.
      workdir: the folder for the results.
      dry_run: whether to show what would run, and stop.
      wandb: the W&B project that is told of the runs; "" for none.
    """

    config: Any
    overrides: dict[str, Any]
    path: str
    workdir: Path
    dry_run: bool = False
    wandb: str = ""


def define_flags(*, trains: bool = False) -> None:
    """Defines --config and --workdir; overrides such as --config.seed=1 need no definition.

    Args:
      trains: whether the program trains networks: defines --dry_run, --wandb and those of a run in
        several processes too.
    """
    flags.DEFINE_string(
        "config", None, "Config file; override fields by --config.section.field=value."
    )
    flags.DEFINE_string(
        "workdir", None, "Folder for the results; runs/NAME for configs/NAME.py by default."
    )
    if trains:
        flags.DEFINE_bool(
            "dry_run", False, "shows the network, the memory and the program of the run, and stops"
        )
        flags.DEFINE_string(
            "wandb", "", "W&B project that is told of the runs; WANDB_MODE=offline to send it later"
        )
        flags.DEFINE_string("coordinator", None, _PROCESSES["coordinator"])
        flags.DEFINE_integer("processes", None, _PROCESSES["processes"])
        flags.DEFINE_integer("process", None, _PROCESSES["process"])


def run(
    program: Callable[[Invocation], Any],
    config_of: Callable[[], str] | None = None,
    *,
    joins: bool = False,
) -> None:
    """Parses the command line, runs the program and exits.

    Args:
      program: what to run.
      config_of: from the program's own flags to the config file, where --config is not given. It may
        raise ConfigError.
      joins: whether it can be one of several processes.
    """

    def main(invocation: Invocation) -> int:
        _keep_compiled_programs()
        _tolerate_broken_cache()

        def run_on_device() -> None:
            _join(joins)
            require_device()
            program(invocation)

        code = exit_code(run_on_device, invocation.workdir)
        processes.part(code)
        return code

    app.run(main, flags_parser=lambda argv: _parse(argv, program, config_of))


def run_plain(program: Callable[[], int]) -> None:
    """Runs a program that has its own flags and no config, and that returns the exit code."""

    def parse(argv: Sequence[str]) -> None:
        try:
            rest = flags.FLAGS([argument for argument in argv if argument not in _HELP])
            if len(rest) > 1:
                raise ConfigError(
                    f"unexpected argument {rest[1]!r}; options are given as --name=value"
                )
            _hush_libraries()
        except (ConfigError, flags.Error) as error:
            sys.exit(_complain(str(error), 2))
        if len(argv) > 1 and any(argument in _HELP for argument in argv[1:]):
            print(help.of_plain(program.__module__, _flags_of(program)))
            sys.exit(0)

    app.run(lambda _: exit_code(program), flags_parser=parse)


def exit_code(program: Callable[[], int | None], workdir: Path | None = None) -> int:
    """Runs a program; prints what ended it, if anything did, as one line.

    Args:
      program: returns its exit code, None for success.
      workdir: of its run, if it has one.

    Returns:
      The exit code of the process.
    """
    try:
        return program() or 0
    except REFUSED as error:
        return _complain(str(error), 2)
    except (NonFiniteError, SweepError) as error:
        return _complain(str(error), 1)
    except Interrupted as stop:
        say_last(str(stop))
        return stop.exit_code
    except KeyboardInterrupt:
        say_last("stopped immediately; nothing saved since the last checkpoint")
        return 130
    except SaveError as error:
        reason = str(error)
    except OSError as error:
        reason = faults.in_words(error)
    except (RuntimeError, MemoryError, ValueError) as error:
        message = str(error)
        if processes.is_lost(error):
            reason = "another process of the run has ended"
        elif isinstance(error, MemoryError) or message.startswith("RESOURCE_EXHAUSTED"):
            reason = f"out of memory: {message[:200]}"
        elif message.startswith("can't start new thread"):
            reason = message
        else:
            raise
    saved = f"; {faults.what_is_saved(workdir)}" if workdir else ""
    return _complain(f"{reason}{saved}", 1)


def _join(allowed: bool) -> None:
    """Joins the other processes of the run, if there are any.

    Raises:
      ConfigError: see `processes.join`; or if the program runs in one process alone.
    """
    given = [flags.FLAGS[name].value if name in flags.FLAGS else None for name in _PROCESSES]
    if given == [None, None, None]:
        return
    coordinator, count, number = given
    if not allowed:
        raise ConfigError(
            "--coordinator, --processes and --process are for one run of `kfrtrl train`; a sweep "
            "has its trials run in several processes by --engine=ray or --engine=slurm"
        )
    if coordinator is None:
        raise ConfigError("--processes and --process need --coordinator=HOST:PORT of process 0")
    processes.join(coordinator, count, number)


def require_device() -> None:
    """Initializes JAX's devices.

    Raises:
      ConfigError: if there are none of the platforms in JAX_PLATFORMS.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        # JAX asserts that it has found one where its plug-in for GPUs is not installed.
        settings: Any = jax.config
        detail = str(error).split(" (set JAX_PLATFORMS")[0].removesuffix(".")
        raise ConfigError(
            f"JAX finds no device of {settings.jax_platforms or 'any platform'}"
            f"{f' ({detail})' if detail else ''}; with JAX_PLATFORMS=cpu it runs on the processor"
        ) from error


def _parse(
    argv: Sequence[str], program: Callable[..., Any], config_of: Callable[[], str] | None
) -> Invocation:
    try:
        return _read(argv, program, config_of)
    except (ConfigError, flags.Error) as error:
        sys.exit(_complain(str(error), 2))
    except KeyboardInterrupt:
        say_last("stopped before anything was begun")
        sys.exit(130)


def _read(
    argv: Sequence[str], program: Callable[..., Any], config_of: Callable[[], str] | None = None
) -> Invocation:
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
        print(help.overview(program.__module__, _further_flags(program)))
        sys.exit(0)
    if flags.FLAGS.config is None and config_of is not None:
        flags.FLAGS["config"].value = config_of()
    if flags.FLAGS.config is None:
        raise ConfigError("--config is missing; for example --config=copy")
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; options are given as --name=value")
    if flags.FLAGS.workdir == "":
        raise ConfigError("--workdir is empty; for example --workdir=runs/first")
    path, *arguments = flags.FLAGS.config.split(":", 1)
    config = call(path, "get_config", *arguments)
    if not is_tree(config):
        raise ConfigError(f"get_config() of {path} must return a ConfigDict, got {quoted(config)}")
    if asks_for_help:
        print(_help(program, path, config, overrides))
        sys.exit(0)
    workdir = flags.FLAGS.workdir or f"runs/{Path(path).stem}"
    invocation = Invocation(config, overrides, path, Path(workdir))
    if "wandb" not in flags.FLAGS:
        return invocation
    if flags.FLAGS.wandb and not flags.FLAGS.dry_run:
        on_wandb.require()
    return invocation._replace(dry_run=flags.FLAGS.dry_run, wandb=flags.FLAGS.wandb)


def _help(program: Callable[..., Any], path: str, config: Any, overrides: dict[str, Any]) -> str:
    name = program.__module__
    if "task" not in config and "optimizer" not in config:
        return help.of_study(name, path, plain("config", config))
    further = _further_flags(program, hidden=_PROCESSES)
    return help.of_config(name, path, resolve(config, overrides), further)


def _further_flags(program: Callable[..., Any], hidden: Collection[str] = ()) -> dict[str, str]:
    """What the flags do that a program has beside --config and --workdir, and some others."""
    hidden = (*_COMMON, *hidden)
    return {
        f"--{flag.name}": flag.help or "" for flag in _flags_of(program) if flag.name not in hidden
    }


def _flags_of(program: Callable[..., Any]) -> list[flags.Flag]:
    """The flags that are defined in the module of a program and in this one."""
    defined = flags.FLAGS.flags_by_module_dict()
    return [*defined.get(program.__module__, []), *defined.get(__name__, [])]


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


def _complain(message: str, code: int) -> int:
    say_last(f"error: {' '.join(message.split())}")
    return code


def warn(line: str) -> None:
    """Prints a warning to stderr, with control characters escaped."""
    print(faults.printable(f"warning: {line}"), file=sys.stderr)


def say_last(line: str) -> None:
    """Prints the line that says why a program ends, the only one even if a signal comes after it."""
    release_signals()
    print(faults.printable(line), file=sys.stderr)


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


def _tolerate_broken_cache() -> None:
    """Makes the cache of compiled programs a convenience that cannot do harm.

    What cannot be read from it is compiled, and replaces what was there. What cannot be written is not.
    """
    jax_internals.write_cache_atomically()
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def processor_name() -> str:
    """The processor's architecture, with a digest of its instruction set as far as it is known."""
    described = platform.processor()
    with contextlib.suppress(OSError):
        # The first processor's entry, without its number and clock rate.
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        described = "\n".join(line for line in lines if line.startswith(_PROCESSOR_LINES))
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
