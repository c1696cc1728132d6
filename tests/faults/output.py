"""Output that nobody can read: python -m tests.faults.output.

Whatever happens to what a program prints, it ends with the exit code and the files that it would have.
"""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.faults import programs
from tests.training.small import records

SWEEP = """\
from configs import copy

def get_config():
    return copy.get_config()

def get_sweep():
    return [{"seed": seed, "estimator.name": name} for name in ("kf_rtrl", "uoro") for seed in (0, 1)]
"""
# Ends of a shell line, and whether the program's errors can still be read.
REDIRECTIONS = (
    "| head -n 1 >/dev/null",
    "| true",
    ">/dev/full",
    "2>/dev/full",
    ">/dev/full 2>/dev/full",
    ">&-",
    "2>&-",
    "<&- >&- 2>&-",
)
ENCODINGS = (
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "cp037"},
)


def main() -> None:
    """Does the faults and counts what came of them."""
    checks = programs.Checks()
    with programs.temporary() as name:
        home, cache = Path(name), Path(name) / "cache"
        whole = home / "whole"
        programs.run(programs.train(f"--workdir={whole}"), cache)
        for i, redirection in enumerate(REDIRECTIONS):
            redirected(home / f"train{i}", cache, whole, redirection, checks)
        (home / "small_sweep.py").write_text(SWEEP)
        for i, encoding in enumerate(ENCODINGS):
            encoded(home, f"sweep{i}", cache, encoding, checks)
        refused(checks)
        on_a_terminal(home, cache, checks)
    checks.finish()


def redirected(
    folder: Path, cache: Path, whole: Path, redirection: str, checks: programs.Checks
) -> None:
    """A run with its output redirected by a shell."""
    command = " ".join(programs.train(f"--workdir={folder}"))
    line = f"{command} {redirection}; exit ${{PIPESTATUS[0]}}"
    code, _, err = programs.run(["bash", "-c", line], cache)
    checks.check(code == 0 and err == "", f"{redirection}: {code} {err!r}")
    same = (folder / "summary.json").exists() and records(folder) == records(whole)
    checks.check(same, f"{redirection}: the results differ")
    print(f"{redirection}: exit code {code}", flush=True)


def encoded(
    home: Path, name: str, cache: Path, encoding: dict[str, str], checks: programs.Checks
) -> None:
    """A sweep whose table has a sign that the encoding lacks, and then a table of it in a file."""
    command = programs.train(
        f"--config={home / 'small_sweep.py'}",
        f"--workdir={home / name}",
        steps=200,
        program="sweep",
    )
    code, out, err = programs.run(command, cache, environment=encoding, text=False)
    checks.check(code == 0 and not err, f"{encoding}: {code} {err!r}")
    checks.check(bool(out), f"{encoding}: no output")
    checks.check((home / name / "sweep.json").exists(), f"{encoding}: no result")
    tabulate = [
        *(command[0], "-m", "experiments.tabulate", f"--sweep={home / name}"),
        *("--rows=estimator.name", f"--out={home / name / 'table'}"),
    ]
    code, _, err = programs.run(tabulate, cache, environment=encoding, text=False)
    checks.check(code == 0 and not err, f"tabulate, {encoding}: {code} {err!r}")
    print(f"{encoding}: exit code {code}", flush=True)


def refused(checks: programs.Checks) -> None:
    """What is refused keeps its exit code where its line cannot be shown."""
    line = " ".join(programs.train("--config.cell.hidden_size=none"))
    for redirection in ("2>/dev/full", "2>&-"):
        code, _, _ = programs.run(["bash", "-c", f"{line} {redirection}"], None)
        checks.check(code == 2, f"refused, {redirection}: {code}")


def on_a_terminal(home: Path, cache: Path, checks: programs.Checks) -> None:
    """A name that holds commands for the terminal is shown, not obeyed; the cursor comes back."""
    folder = home / "title\x1b]0;owned\x07[red]"
    shown, code = in_terminal(programs.train(f"--workdir={folder}"), cache)
    checks.check(code == 0, f"terminal: exit code {code}")
    checks.check(b"\x1b]0;" not in shown and b"\x07" not in shown, f"terminal: {shown!r}")
    checks.check(b"\\x1b]0;owned\\x07[red]" in shown.replace(b"\r\n", b""), "terminal: no name")
    checks.check(shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l"), "terminal: no cursor")


def in_terminal(command: Sequence[str], cache: Path) -> tuple[bytes, int]:
    """Runs a command on a terminal of its own; what it showed, and its exit code."""
    ours, theirs = pty.openpty()
    parts: list[bytes] = []

    def read() -> None:
        # At its end a terminal raises an error.
        with contextlib.suppress(OSError):
            while part := os.read(ours, 65536):
                parts.append(part)

    thread = threading.Thread(target=read)
    process = programs.start(
        command,
        cache,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        environment={"TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(theirs)
    thread.start()
    process.wait(timeout=200)
    thread.join()
    os.close(ours)
    return b"".join(parts), process.returncode


if __name__ == "__main__":
    main()
