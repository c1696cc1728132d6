"""A job of an engine: trials that run side by side, from their last checkpoint to their results."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kfrtrl_jax.errors import DataError
from kfrtrl_jax.training import checkpoints, display, events, made_with, on_wandb, outcomes, workdir
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training.engines.storage import Group, Storage
from kfrtrl_jax.training.group import make_group
from kfrtrl_jax.training.loop import Member, Place, Training
from kfrtrl_jax.training.program import Experiment
from kfrtrl_jax.training.trials import Work

Results = list[dict[str, Any]]
# How long a process may take to end after its cluster has given it up.
SECONDS_TO_END = 60.0


class Job(NamedTuple):
    """Trials to run side by side, as plain data that can be sent to another machine.

    Attributes:
      work: their names, and the folder of their checkpoints.
      runs: the resolved config of each, as nested dicts.
      overrides: of each, by path.
      folder: of the sweep.
      title: in words.
      settings: those of JAX that the numbers depend on, see `made_with`.
      data: the digest of what its task reads, "" if it reads nothing.
      init_from: the digest of the parameters that its trials start from; "" for their own.
      storage: the URL of the storage that has its files, "" if all machines see the folder.
      home: the absolute path of the sweep's folder where the sweep was begun.
      wandb: the W&B project that is told of the trials; "" for none.
    """

    work: Work
    runs: tuple[dict[str, Any], ...]
    overrides: tuple[dict[str, Any], ...]
    folder: Path
    title: str
    settings: dict[str, Any]
    data: str = ""
    init_from: str = ""
    storage: str = ""
    home: str = ""
    wandb: str = ""


Outcome = Results | Exception


class Engine(NamedTuple):
    """Where the groups of a sweep run.

    Attributes:
      run: jobs -> each job with its results, or the error that ended it, as soon as there are any.
      gather: brings into a sweep's folder what earlier runs have left elsewhere.
    """

    run: Callable[[Sequence[Job]], Iterable[tuple[Job, Outcome]]]
    gather: Callable[[Path], None] = lambda folder: None


def run(
    job: Job,
    base: Experiment | None = None,
    *,
    stop_on: Sequence[int] = (),
    patience: float = SECONDS_TO_END,
) -> Results:
    """Runs a job, or continues it from its last checkpoint; the results of its trials.

    Args:
      job: the job.
      base: the experiment of its first trial, if it has been built.
      stop_on: the signals that stop it with its state saved; others are left to the engine.
      patience: seconds to wait for the end of a process that runs the same job.

    Raises:
      WorkdirError: if it is running elsewhere, or if none of its checkpoints can be used.
      SaveError: if its state cannot be saved.
      DataError: if the data on this machine are others than those of the sweep.
      Interrupted: on one of the signals.
    """
    made_with.apply(job.settings)
    runs = [configs.resolve(run) for run in job.runs]
    with contextlib.ExitStack() as stack:
        job, copy = stack.enter_context(_at_hand(job))
        stack.enter_context(workdir.hold(job.work.folder, patience))
        group = make_group(runs, base)
        if group.about.data != job.data:
            raise DataError(
                f"what {configs.shown(runs[0], 'task')} reads on this machine is not what it read when "
                f"the sweep began"
            )
        if group.about.init_from != job.init_from:
            raise DataError(
                f"the parameters in init_from {runs[0].init_from} on this machine are not those with "
                f"which the sweep began"
            )
        show = display.make_display(runs[0].num_steps, 0, group.about.words)
        stack.enter_context(contextlib.closing(show))
        show.note(job.title)
        saved = checkpoints.Checkpoints(job.work.folder, after_save=copy)
        stack.enter_context(contextlib.closing(saved))
        place = Place(saved, job.folder, show, stop_on=stop_on)
        results = Training(group, _members(job, show.note), runs[0], place).run()
        copy()
        return results


def _members(job: Job, note: Callable[[str], None]) -> list[Member]:
    """The trials of a job, and what is told of their records."""
    folders = [job.folder / "trials" / name for name in job.work.names]
    titles = [
        f"{name}: {outcomes.label_of(own)}" for name, own in zip(job.work.names, job.overrides)
    ]
    named = [
        on_wandb.Named(folder, f"{job.home}/trials/{name}", title, config, Path(job.home).name)
        for folder, name, title, config in zip(folders, job.work.names, titles, job.runs)
    ]
    sent = on_wandb.connect(job.wandb, named, lambda line: note(f"warning: {line}"))
    return [
        Member(folder, f"trial {title}", (events.tensorboard(folder / events.FOLDER, own), *more))
        for folder, title, own, more in zip(folders, titles, job.overrides, sent, strict=True)
    ]


@contextlib.contextmanager
def _at_hand(job: Job) -> Iterator[tuple[Job, Callable[[], None]]]:
    """The job in a folder that this machine sees, and what copies its files to the storage."""
    if not job.storage:
        yield job, lambda: None
        return
    with tempfile.TemporaryDirectory(prefix="kfrtrl_jax-") as name:
        scratch, own = Path(name), job.work.folder.name
        group = Group(Storage(job.storage), own)
        group.fetch(scratch, group.take())
        work = job.work._replace(folder=scratch / "groups" / own)
        yield (
            job._replace(folder=scratch, work=work),
            functools.partial(group.push, scratch, job.work.names),
        )


def one_by_one(
    jobs: Sequence[Job], work: Callable[[Job], Results]
) -> Iterator[tuple[Job, Outcome]]:
    """Runs jobs one after another; one that fails does not keep the others from running.

    Raises:
      WorkdirError, SaveError, OSError: of the first job that meets them, as the others would too.
    """
    for job in jobs:
        try:
            yield job, work(job)
        except (workdir.WorkdirError, checkpoints.SaveError, OSError):
            raise
        except (RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
            yield job, error
