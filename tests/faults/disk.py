"""Full disks and other limits of the system: python -m tests.faults.disk, as root for the full disks.

On file systems of eleven sizes a run ends with one line or finishes; with more space the same command
goes on to the log of the undisturbed run. The same holds for limits on files and a read-only folder.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults import programs

# KiB: from too small for a folder to enough for the whole run.
SIZES = (4, 16, 32, 64, 96, 128, 192, 256, 384, 512, 1024)
FILE_SIZES = (0, 1000, 8000, 30000)
OPEN_FILES = (9, 11, 13, 16, 20, 24)


def main() -> None:
    """Does the faults and counts what came of them."""
    checks = programs.Checks()
    with programs.temporary() as name:
        home, cache = Path(name), Path(name) / "cache"
        whole = home / "whole"
        code, _, err = programs.run(programs.train(f"--workdir={whole}"), cache)
        checks.check(code == 0 and err == "", f"the undisturbed run: {code} {err}")
        full_disks(home, cache, whole, checks)
        limits(home, cache, whole, checks)
        vanishes(home / "vanishes", cache, checks)
        full_cache(home, cache, whole, checks)
    checks.finish()


def full_disks(home: Path, cache: Path, whole: Path, checks: programs.Checks) -> None:
    """A run on file systems of all sizes, which then get larger."""
    for size in SIZES:
        with mounted(home / f"disk{size}", f"size={size}k") as place:
            if place is None:
                print("full disks: skipped, as nothing can be mounted here")
                return
            code = fails_or_ends(place / "run", cache, f"{size} KiB", checks)
            print(f"disk of {size} KiB: exit code {code}", flush=True)
            mount("-o", "remount,size=20m", str(place))
            goes_on(place / "run", cache, whole, f"{size} KiB", checks)
    with mounted(home / "locked", "size=1m,ro") as place:
        if place is not None:
            code = fails_or_ends(place / "run", cache, "read-only", checks)
            checks.check(code == 2, f"read-only: exit code {code}")
            mount("-o", "remount,rw,size=20m", str(place))
            goes_on(place / "run", cache, whole, "read-only", checks)


def limits(home: Path, cache: Path, whole: Path, checks: programs.Checks) -> None:
    """Limits on the size and on the number of files."""
    for kind, values in (("FSIZE", FILE_SIZES), ("NOFILE", OPEN_FILES)):
        for value in values:
            folder, what = home / f"{kind}{value}", f"RLIMIT_{kind} = {value}"
            number = getattr(resource, f"RLIMIT_{kind}")

            def limit(number: int = number, value: int = value) -> None:
                resource.setrlimit(number, (value, value))

            code = fails_or_ends(folder, cache, what, checks, preexec_fn=limit)
            print(f"{what}: exit code {code}", flush=True)
            goes_on(folder, cache, whole, what, checks)


def vanishes(folder: Path, cache: Path, checks: programs.Checks) -> None:
    """A workdir that is removed during the run."""
    process = programs.start(programs.train(f"--workdir={folder}", steps=1000000), cache)
    while process.poll() is None and not list((folder / "checkpoints").glob("[0-9]*")):
        time.sleep(0.01)
    folder.rename(folder.with_name("moved"))
    _, err = process.communicate(timeout=100)
    checks.check(process.returncode == 1, f"a workdir that vanishes: {process.returncode}")
    checks.one_line(err, "a workdir that vanishes")


def full_cache(home: Path, cache: Path, whole: Path, checks: programs.Checks) -> None:
    """A cache of compiled programs that is full, and one with damaged files, cost nothing but time."""
    for path in cache.glob("*-cache"):
        path.write_bytes(path.read_bytes()[:1000])
    goes_on(home / "damaged", cache, whole, "a damaged cache", checks)
    repaired = all(path.stat().st_size > 1000 for path in cache.glob("*-cache"))
    checks.check(repaired, "a damaged cache stays damaged")
    with mounted(home / "full", "size=8k") as place:
        if place is not None:
            goes_on(home / "uncached", place, whole, "a full cache", checks)


def fails_or_ends(
    folder: Path, cache: Path, what: str, checks: programs.Checks, **options: object
) -> int:
    """Runs the command with the fault; returns the exit code."""
    code, out, err = programs.run(programs.train(f"--workdir={folder}"), cache, **options)
    checks.check(code in (0, 1, 2), f"{what}: exit code {code}")
    checks.check("Traceback" not in out, f"{what}: {out!r}")
    if code == 0:
        checks.check(err == "", f"{what}: {err!r}")
    else:
        checks.one_line(err, what)
        checks.check(err.startswith("error: "), f"{what}: {err!r}")
        # Invalid input is only a folder that cannot be made or opened.
        checks.check(code == 1 or "cannot be written" in err, f"{what}: {code} {err!r}")
    return code


def goes_on(folder: Path, cache: Path, whole: Path, what: str, checks: programs.Checks) -> None:
    """Runs the command without the fault; its log must be that of the undisturbed run."""
    code, _, err = programs.run(programs.train(f"--workdir={folder}"), cache)
    checks.check(code == 0 and err == "", f"after {what}: {code} {err!r}")
    same = code == 0 and programs.log_of(folder) == programs.log_of(whole)
    checks.check(same, f"after {what}: the log differs")


def mount(*arguments: str) -> bool:
    """Calls mount; whether it could."""
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Path | None]:
    """A file system in memory; None if it cannot be mounted."""
    place.mkdir()
    if not mount("-t", "tmpfs", "-o", options, "tmpfs", str(place)):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


if __name__ == "__main__":
    main()
