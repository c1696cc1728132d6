"""Full disks and other limits of the system: python -m tests.faults.disk, as root for the full disks.

On file systems of eleven sizes a run ends with one line or finishes; with more space the same command
goes on to the log of the undisturbed run. The same holds for limits on files and a read-only folder.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults import programs
from tests.training.small import records

# KiB: from too small for a folder to enough for the whole run.
SIZES = (4, 16, 32, 64, 96, 128, 192, 256, 384, 512, 1024)
LIMITS = (
    ("FSIZE", 0),
    ("FSIZE", 8000),
    ("FSIZE", 30000),
    *(("NOFILE", n) for n in (9, 11, 16, 20)),
)
STEPS = 4000


def main() -> None:
    """Does the faults and counts what came of them."""
    checks = programs.Checks()
    with programs.temporary() as name:
        home, cache = Path(name), Path(name) / "cache"
        whole = home / "whole"
        code, _, err = programs.run(programs.train(f"--workdir={whole}", steps=STEPS), cache)
        checks.check(code == 0 and err == "", f"the undisturbed run: {code} {err}")
        vanishes(home / "vanishes", cache, checks)
        full_cache(home, cache, whole, checks)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            context = (home, cache, whole, checks)
            jobs = [pool.submit(full_disk, size, *context) for size in SIZES]
            jobs += [pool.submit(limited, limit, *context) for limit in LIMITS]
            jobs.append(pool.submit(read_only, *context))
            for job in jobs:
                job.result()
    checks.finish()


def full_disk(size: int, home: Path, cache: Path, whole: Path, checks: programs.Checks) -> None:
    """A run on a file system of some KiB, which then gets larger."""
    with mounted(home / f"disk{size}", f"size={size}k") as place:
        if place is None:
            print(f"disk of {size} KiB: skipped, as nothing can be mounted here")
            return
        code = fails_or_ends(place / "run", cache, f"{size} KiB", checks)
        print(f"disk of {size} KiB: exit code {code}", flush=True)
        mount("-o", "remount,size=20m", str(place))
        goes_on(place / "run", cache, whole, f"{size} KiB", checks)


def read_only(home: Path, cache: Path, whole: Path, checks: programs.Checks) -> None:
    """A run on a file system that cannot be written."""
    with mounted(home / "locked", "size=1m,ro") as place:
        if place is not None:
            code = fails_or_ends(place / "run", cache, "read-only", checks)
            checks.check(code == 2, f"read-only: exit code {code}")
            mount("-o", "remount,rw,size=20m", str(place))
            goes_on(place / "run", cache, whole, "read-only", checks)


def limited(
    limit: tuple[str, int], home: Path, cache: Path, whole: Path, checks: programs.Checks
) -> None:
    """A limit on the size or on the number of files."""
    kind, value = limit
    folder, what = home / f"{kind}{value}", f"RLIMIT_{kind} = {value}"
    number = getattr(resource, f"RLIMIT_{kind}")
    code = fails_or_ends(
        folder,
        cache,
        what,
        checks,
        preexec_fn=lambda: resource.setrlimit(number, (value, value)),
    )
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
    code, out, err = programs.run(
        programs.train(f"--workdir={folder}", steps=STEPS), cache, **options
    )
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
    code, _, err = programs.run(programs.train(f"--workdir={folder}", steps=STEPS), cache)
    checks.check(code == 0 and err == "", f"after {what}: {code} {err!r}")
    same = code == 0 and records(folder) == records(whole)
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
