"""What the programs in `experiments` share: flags, refusals in one line, exit codes.

Exit codes: 0 done, 1 a run that failed, 2 refused input, 130 and 143 stopped by ctrl-C and SIGTERM.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from kfrtrl_jax.errors import ConfigError, DataError, UnsupportedCellError, WorkdirError
from kfrtrl_jax.training.config import SECTIONS, call, check_path
from kfrtrl_jax.training.loop import Interrupted
from kfrtrl_jax.training.metrics import NonFiniteError

flags.disclaim_key_flags()

# What /proc/cpuinfo says of instructions, on x86 and on ARM.
_PROCESSOR_LINES = (
    *("vendor_id", "cpu family", "model", "stepping", "flags"),
    *("Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part"),
)

REFUSED = (ConfigError, DataError, WorkdirError, UnsupportedCellError)


class Invocation(NamedTuple):
    """What the command line says.

    Attributes:
      config: from the config file, with the overrides applied; not yet checked.
      overridden: paths of the overrides ("estimator.name").
      path: of the config file.
      workdir: the folder for the results.
    """

    config: Any
    overridden: frozenset[str]
    path: str
    workdir: Path


class _ConfigFile(ConfigFileFlagParser):
    """Reads config files with our own errors, and gives them the sections that they leave out.

    Attributes:
      sections: those of a training config; none for a program with fields of its own.
    """

    sections: Collection[str] = ()

    def parse(self, path: str) -> Any:
        file, *arguments = path.split(":", 1)
        given = call(file, "get_config", *arguments)
        if not isinstance(given, (ConfigDict, dict)):
            raise ConfigError(f"get_config() of {file} must return a ConfigDict, got {given!r}")
        config = ConfigDict(given)
        for section in self.sections:
            if section not in config:
                config[section] = ConfigDict()
        return config


def define_flags(sections: Collection[str] = tuple(SECTIONS)) -> None:
    """Defines --config, with its overrides, and --workdir.

    Args:
      sections: those that a config has even if its file leaves them out; none for a program whose
        configs are not those of a training run, and which checks them itself.
    """
    config_flags.DEFINE_config_file(
        "config",
        help_string="Config file; override fields by --config.section.field=value.",
        lock_config=False,
        accept_new_attributes=True,
    )
    parser = _ConfigFile("config", lock_config=False)
    parser.sections = sections
    flags.FLAGS["config"].parser = parser
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


def run_plain(program: Callable[[], int]) -> None:
    """Runs a program that has flags of its own and no config; it returns the exit code."""

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


def _read(argv: Sequence[str]) -> Invocation:
    """Reads flags and config file.

    Raises:
      ConfigError: for a broken config file or override.
      flags.Error: for flags that do not exist.
    """
    for argument in argv[1:]:
        override = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        parser: Any = flags.FLAGS["config"].parser
        if override and parser.sections:
            check_path(override[1])
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        # absl wraps the errors of a flag's parser in its own.
        raise error.__context__ if isinstance(error.__context__, ConfigError) else error from None
    _hush_libraries()
    if flags.FLAGS.config is None:
        raise ConfigError("--config is missing; for example --config=configs/copy.py")
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; options are given as --name=value")
    flag = flags.FLAGS["config"]
    path = config_flags.get_config_filename(flag).split(":", 1)[0]
    workdir = flags.FLAGS.workdir or f"runs/{Path(path).stem}"
    overridden = frozenset(config_flags.get_override_values(flag))
    return Invocation(flags.FLAGS.config, overridden, path, Path(workdir))


def _complain(error: BaseException, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _hush_libraries() -> None:
    """Else absl would show all that the libraries have to say."""
    verbosity = flags.FLAGS["verbosity"]
    if verbosity.using_default_value:
        verbosity.value, verbosity.using_default_value = logging.WARNING, False


def _keep_compiled_programs() -> None:
    """Keeps compiled programs between runs, so that a run like one before starts at once.

    They lie in $XDG_CACHE_HOME/kfrtrl_jax (~/.cache/kfrtrl_jax), a folder for each kind of processor:
    what is compiled for one may not run on another, and JAX does not tell them apart where a home is
    shared. JAX's own JAX_COMPILATION_CACHE_DIR moves them (the folder is then as given),
    JAX_ENABLE_COMPILATION_CACHE=0 keeps none; nor does a folder that cannot be written.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is not None or not settings.jax_enable_compilation_cache:
        return
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(base) / "kfrtrl_jax" / processor_name()
    try:
        # For its owner alone: who can write there can make others' runs do anything.
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        logging.info("compiled programs are not kept: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))


def processor_name() -> str:
    """The processor's architecture, and a digest of what its instructions are, as far as is known."""
    described = platform.processor()
    with contextlib.suppress(OSError):
        # The first of the processors; its clock and numbers aside.
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        described = "\n".join(line for line in lines if line.startswith(_PROCESSOR_LINES))
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"
