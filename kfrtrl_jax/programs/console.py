"""The command `kfrtrl NAME ...`: finds a program, and runs it once what it needs is there."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys

import kfrtrl_jax
from kfrtrl_jax.programs import MODULES, PROGRAMS, start

_HELP = ("--help", "-help", "-h", "help")


def main() -> None:
    """Runs the program that the command line names, and exits."""
    start.begin()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in _HELP:
        print(overview())
        sys.exit(0)
    if name == "--version":
        print(f"kfrtrl_jax {kfrtrl_jax.__version__}")
        sys.exit(0)
    if name not in PROGRAMS:
        close = difflib.get_close_matches(name, PROGRAMS, n=1)
        rest = f"did you mean {close[0]}?" if close else f"one of {', '.join(PROGRAMS)}"
        _refuse(f"there is no program {name!r}; {rest}")
    sys.argv[1:] = arguments
    _run(name)


def run(name: str) -> None:
    """Runs the program of this name with the arguments of the command line, and exits."""
    start.begin()
    _run(name)


def overview() -> str:
    """All programs, with a line each."""
    width = max(map(len, PROGRAMS))
    return "\n".join(
        [
            "kfrtrl PROGRAM [--FLAG=VALUE ...]",
            "Online training of recurrent networks, and studies of it.",
            "",
            *(f"  {name:<{width}}  {program.summary}" for name, program in PROGRAMS.items()),
            "",
            "kfrtrl PROGRAM --help says what a program takes; kfrtrl --version says which one this is.",
        ]
    )


def missing(name: str) -> dict[str, list[str]]:
    """The modules that a program lacks, by the extra that brings them."""
    lacking = {
        extra: [module for module in MODULES[extra] if importlib.util.find_spec(module) is None]
        for extra in PROGRAMS[name].extras
    }
    return {extra: modules for extra, modules in lacking.items() if modules}


def _run(name: str) -> None:
    if lacking := missing(name):
        modules = ", ".join(module for modules in lacking.values() for module in modules)
        extras = ",".join(lacking)
        _refuse(f'kfrtrl {name} needs {modules}; install by: pip install "kfrtrl_jax[{extras}]"')
    importlib.import_module(f"kfrtrl_jax.programs.{name}").main()


def _refuse(line: str) -> None:
    shown = "".join(c if c.isprintable() else "?" for c in line)
    print(f"error: {shown}", file=sys.stderr)
    sys.exit(2)
