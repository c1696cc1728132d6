"""Damages the files of workdirs, and checks that nothing wrong follows.

    python -m tests.faults.damage --flips=500

A run and a sweep are made, stopped halfway; every file of theirs is cut, emptied, deleted, overwritten,
and has bits flipped. Each time the run or sweep is continued, and its finished network is loaded. What
follows must be the same numbers as without the damage, or a refusal in one line.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import kfrtrl_jax as kf
from kfrtrl_jax.errors import ConfigError, DataError, WorkdirError
from kfrtrl_jax.training import checkpoints, finished, loop, plots, sweep, train, trials, workdir
from tests.training.small import nested, records, small, text, timeless

HALF, WHOLE = 40, 60
REFUSED = (WorkdirError, DataError, ConfigError)


class Subject(NamedTuple):
    """A workdir to damage.

    Attributes:
      folder: as it is before the damage.
      go_on: continues it, in a copy.
      outcome: what it has come to, in a copy: plain values and arrays by name.
    """

    folder: Path
    go_on: Callable[[Path], Any]
    outcome: Callable[[Path], dict[str, Any]]


def damages(file: Path, flips: int, random_bits: random.Random) -> Iterator[tuple[str, Any]]:
    """The name of each damage to a file, and a function of its path that does it."""

    def flip(path: Path, bit: int) -> None:
        contents = bytearray(path.read_bytes())
        contents[bit // 8] ^= 1 << bit % 8
        path.write_bytes(contents)

    size = file.stat().st_size
    yield "cut", lambda path: path.write_bytes(path.read_bytes()[: size // 2])
    yield "emptied", lambda path: path.write_bytes(b"")
    yield "deleted", lambda path: path.unlink()
    yield "overwritten", lambda path: path.write_bytes(random_bits.randbytes(size))
    if size:
        for _ in range(flips):
            bit = random_bits.randrange(8 * size)
            yield f"bit {bit} flipped", lambda path, bit=bit: flip(path, bit)


def examined(subject: Subject, reference: dict[str, Any], file: Path, damage: Any) -> str:
    """Damages a copy and continues it: "same", "said" (with a warning), "refused", or what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "workdir"
        shutil.copytree(subject.folder, copy)
        damage(copy / file)
        shown = io.StringIO()
        try:
            with contextlib.redirect_stdout(shown):
                subject.go_on(copy)
                found = subject.outcome(copy)
        except REFUSED as error:
            return "refused" if "\n" not in str(error) else f"more than one line: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        warned = "warning: " in shown.getvalue() or "note: " in shown.getvalue()
        for name, value in reference.items():
            if name.endswith("log") and warned:
                # Damaged lines are set aside, and the others kept.
                if any(record not in value for record in found[name]):
                    return f"another {name}"
            elif not np.array_equal(value, found[name]):
                return f"another {name}"
        return "said" if warned else "same"


def outcome_of_run(folder: Path) -> dict[str, Any]:
    """The log, the summary and the parameters of a finished run, as arrays or plain values."""
    run = finished.read_run(folder, lambda line: print(f"warning: {line}"))
    found: dict[str, Any] = {"log": records(folder), "summary": timeless(run.summary)}
    # There are no best parameters without held-out data.
    for which in [which for which in ("best", "final") if (folder / which).is_dir()]:
        arrays = checkpoints.to_arrays(kf.load(folder, which).parameters)
        found.update({f"{which} {name}": array for name, array in arrays.items()})
    return found


def outcome_of_sweep(folder: Path) -> dict[str, Any]:
    """The logs and results of a finished sweep."""
    found = workdir.read_document(folder / trials.RESULTS)["trials"]
    logs = {f"{t['trial']} log": records(folder / "trials" / t["trial"]) for t in found}
    return {**logs, **{t["trial"]: timeless(t["result"]) for t in found}}


def make_run(home: Path) -> Subject:
    """A run on a text, stopped halfway."""
    changes = text(home / "data")
    half, whole = (small({**changes, "num_steps": steps}) for steps in (HALF, WHOLE))
    train.train(half, home / "run")
    return Subject(home / "run", lambda folder: train.train(whole, folder), outcome_of_run)


def make_finished_run(home: Path) -> Subject:
    """A finished run of which only the results are read."""
    whole = small({**text(home / "data"), "num_steps": WHOLE})
    train.train(whole, home / "finished")
    return Subject(home / "finished", lambda folder: None, outcome_of_run)


def make_sweep(home: Path) -> Subject:
    """A sweep of two groups, of which the second is stopped halfway."""
    changes = {**text(home / "data"), "num_steps": WHOLE}
    base = nested({name: value for name, value in changes.items() if value is not None})
    points = sweep.product(
        sweep.grid(**{"estimator.name": ["truncated", "kf_rtrl"]}), sweep.seeds(2)
    )
    groups, advance = [], loop.Training._advance

    def stopped(training: loop.Training, chunk: Any) -> None:
        groups.append(training.group) if training.group not in groups else None
        if len(groups) == 2 and training.step == HALF:
            raise KeyboardInterrupt
        advance(training, chunk)

    loop.Training._advance = stopped  # type: ignore[method-assign]
    with contextlib.suppress(KeyboardInterrupt):
        sweep.run_sweep(base, points, home / "sweep")
    loop.Training._advance = advance  # type: ignore[method-assign]

    def go_on(folder: Path) -> None:
        sweep.run_sweep(base, points, folder)

    return Subject(home / "sweep", go_on, outcome_of_sweep)


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Compiles each program once, and checks and draws nothing: the faults are about files."""
    compiled: dict[str, Any] = {}
    patched = [
        (loop.Training, "_compiled", loop.Training._compiled),
        (plots, "plot_run", plots.plot_run),
        (plots, "plot_groups", plots.plot_groups),
        (kf.linearization, "check", kf.linearization.check),
    ]

    def once(training: loop.Training) -> Any:
        shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), training.state)
        key = str((shapes, training._config.estimator))
        if key not in compiled:
            compiled[key] = patched[0][2](training)
        return compiled[key]

    nothing = kf.linearization.Check("float64", 0.0, {}, 0.0, 0.0, 1, 0.0)
    loop.Training._compiled = once  # type: ignore[method-assign]
    plots.plot_run = plots.plot_groups = lambda *_, **__: None  # type: ignore[assignment]
    kf.linearization.check = lambda *_, **__: nothing  # type: ignore[assignment]
    try:
        yield
    finally:
        for owner, name, value in patched:
            setattr(owner, name, value)


def run(subjects: list[Subject], flips: int, seed: int, every: int = 1) -> list[str]:
    """Does every damage, or every so many of them, to every file; returns what is wrong."""
    chosen, wrong = random.Random(seed), []
    for subject in subjects:
        counts: collections.Counter[str] = collections.Counter()
        reference: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "workdir"
            shutil.copytree(subject.folder, copy)
            with contextlib.redirect_stdout(io.StringIO()):
                subject.go_on(copy)
                reference = subject.outcome(copy)
        files = sorted(p.relative_to(subject.folder) for p in subject.folder.rglob("*"))
        files = [file for file in files if (subject.folder / file).is_file()]
        each = -(-flips // len(files))
        for number, file in enumerate(files):
            for i, (name, damage) in enumerate(damages(subject.folder / file, each, chosen)):
                if (number + i) % every:
                    continue
                result = examined(subject, reference, file, damage)
                known = result in ("same", "said", "refused")
                counts[result if known else "wrong"] += 1
                if not known:
                    wrong.append(f"{subject.folder.name}/{file} {name}: {result}")
                    print(wrong[-1], flush=True)
        print(f"{subject.folder.name}: {sum(counts.values())} damages: {dict(counts)}", flush=True)
    return wrong


def main() -> int:
    """Runs all damages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=500, help="bits flipped in each workdir")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    with tempfile.TemporaryDirectory() as folder, quickly():
        home = Path(folder)
        jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        with contextlib.redirect_stdout(io.StringIO()):
            subjects = [make(home) for make in (make_run, make_finished_run, make_sweep)]
        return bool(run(subjects, options.flips, options.seed))


if __name__ == "__main__":
    sys.exit(main())
