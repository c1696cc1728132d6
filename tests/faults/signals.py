"""Signals at every moment of a run: python -m tests.faults.signals --moments=30.

Half of the moments are seconds after the start, up to the length of a run; half are steps of the loop.
A third of the runs compile anew. Some are continued, and must then be the undisturbed one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from tests.faults import programs
from tests.training.small import records

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds from a signal to the end of the process.
PATIENCE = 10.0


def main() -> None:
    """Sends the signals and counts what came of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--moments", type=int, default=30)
    moments = parser.parse_args().moments
    checks, seen = programs.Checks(), Counter()
    with programs.temporary() as name, concurrent.futures.ThreadPoolExecutor(2) as pool:
        home, cache = Path(name), Path(name) / "cache"
        whole = home / "whole"
        programs.run(programs.train(f"--workdir={home / 'warm'}"), cache)
        lengths = {}
        for kind in (cache, None):
            folder = whole if kind else home / "cold"
            begun = time.monotonic()
            code, _, err = programs.run(programs.train(f"--workdir={folder}"), kind)
            lengths[kind] = time.monotonic() - begun
            checks.check(code == 0 and err == "", f"the undisturbed run: {code} {err}")
        print(f"undisturbed: {lengths[cache]:.1f} s, and {lengths[None]:.1f} s with compiling")

        def once(i: int, number: int) -> None:
            kind = None if i % 3 == 1 else cache
            folder = home / f"{number}-{i}"
            half = moments // 2
            if i < half:
                seconds, step = lengths[kind] * i / half, None
            else:
                seconds, step = 0.0, programs.STEPS * (i - half) // (moments - half)
            stopped(folder, kind, number, seconds, step, checks, seen)
            if i % 10 == 3 or i == moments - 1:
                continues(folder, cache, whole, checks)

        def twice(i: int, number: int) -> None:
            folder = home / f"twice-{number}-{i}"
            stopped_twice(folder, cache, number, i, checks, seen)
            continues(folder, cache, whole, checks)

        jobs = [pool.submit(once, i, n) for i in range(moments) for n in SIGNALS]
        jobs += [pool.submit(twice, i, n) for i in range(max(moments // 10, 1)) for n in SIGNALS]
        for job in jobs:
            job.result()
        ignored(home / "nohup", cache, checks)
    for line, count in sorted(seen.items()):
        print(f"{count:4} {line}")
    checks.finish()


def stopped(
    folder: Path,
    cache: Path | None,
    number: int,
    seconds: float,
    step: int | None,
    checks: programs.Checks,
    seen: Counter[str],
) -> None:
    """One signal, some seconds after the program handles it, or when it has logged a step."""
    process = programs.start(programs.train(f"--workdir={folder}"), cache)
    programs.wait_until_caught(process)
    if step is None:
        time.sleep(seconds)
    else:
        programs.wait_for_step(process, folder, step)
    process.send_signal(number)
    begun = time.monotonic()
    out, err = process.communicate(timeout=100)
    took = time.monotonic() - begun
    moment = f"{seconds:.2f} s" if step is None else f"step {step}"
    what = f"{signal.Signals(number).name} after {moment}: exit code {process.returncode}"
    if process.returncode == 0:
        seen["finished before the signal"] += 1
        checks.check(err == "" and (folder / "summary.json").exists(), f"{what} {err!r}")
        return
    seen["stopped at once" if "at once" in err else "stopped and saved"] += 1
    checks.check(process.returncode == 128 + number, f"{what} {err!r}")
    checks.one_line(err, what)
    checks.check(err.startswith("stopped "), f"{what} {err!r}")
    checks.check("Traceback" not in out, f"{what} {out!r}")
    checks.check(took < PATIENCE, f"{what}: {took:.1f} s after the signal")


def stopped_twice(
    folder: Path,
    cache: Path,
    number: int,
    i: int,
    checks: programs.Checks,
    seen: Counter[str],
) -> None:
    """A second signal, up to some tenths of a second after one in the loop."""
    process = programs.start(programs.train(f"--workdir={folder}"), cache)
    programs.wait_for_step(process, folder, programs.STEPS // 4)
    second = SIGNALS[(SIGNALS.index(signal.Signals(number)) + i) % 3]
    process.send_signal(number)
    time.sleep((0.0, 0.02, 0.3)[i % 3])
    process.send_signal(second)
    _, err = process.communicate(timeout=100)
    what = f"{number} and {second} in the loop: exit code {process.returncode}"
    # A signal after the last line ends the process as the system does.
    expected = {128 + number, 128 + second, -number, -second}
    checks.check(process.returncode in expected, f"{what} {err!r}")
    checks.check(process.returncode > 0 or err.count("\n") <= 1, f"{what} {err!r}")
    if process.returncode > 0:
        checks.one_line(err, what)
    seen["two signals: at once" if "at once" in err else "two signals: saved"] += 1


def continues(folder: Path, cache: Path, whole: Path, checks: programs.Checks) -> None:
    """Runs the same command again; its log must be that of the undisturbed run."""
    code, _, err = programs.run(programs.train(f"--workdir={folder}"), cache)
    checks.check(code == 0 and err == "", f"{folder.name} continued: {code} {err!r}")
    same = code == 0 and records(folder) == records(whole)
    checks.check(same, f"{folder.name} continued: its log differs")


def ignored(folder: Path, cache: Path, checks: programs.Checks) -> None:
    """Under nohup a lost terminal does not end a run."""
    command = ["nohup", *programs.train(f"--workdir={folder}")]
    process = programs.start(command, cache, stdin=subprocess.DEVNULL)
    programs.wait_until_caught(process, signal.SIGTERM)
    for _ in range(8):
        time.sleep(0.5)
        process.send_signal(signal.SIGHUP)
    process.communicate(timeout=100)
    checks.check(process.returncode == 0, f"nohup: exit code {process.returncode}")


if __name__ == "__main__":
    main()
