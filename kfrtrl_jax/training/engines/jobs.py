"""A job of an engine: trials that run side by side, from their last checkpoint to their results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kfrtrl_jax.training import checkpoints, display, made_with, workdir
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training.group import make_group
from kfrtrl_jax.training.loop import Member, Place, Training, summarize
from kfrtrl_jax.training.program import Experiment
from kfrtrl_jax.training.trials import Work

Results = list[dict[str, Any]]


class Job(NamedTuple):
    """Trials to run side by side, as plain data that can be sent to another machine.

    Attributes:
      work: their names, and the folder of their checkpoints.
      runs: the resolved config of each, as nested dicts.
      folder: of the sweep.
      title: in words.
      settings: those of JAX that the numbers depend on, see `made_with`.
    """

    work: Work
    runs: tuple[dict[str, Any], ...]
    folder: Path
    title: str
    settings: dict[str, Any]


Outcome = Results | Exception
Engine = Callable[[Sequence[Job]], Iterable[tuple[Job, Outcome]]]


def run(job: Job, base: Experiment | None = None, *, stoppable: bool = False) -> Results:
    """Runs a job, or continues it from its last checkpoint; the results of its trials.

    Args:
      job: the job.
      base: the experiment of its first trial, if it has been built.
      stoppable: whether signals stop it with its state saved; otherwise they are left to the engine.

    Raises:
      WorkdirError: if it is running elsewhere, or if none of its checkpoints can be used.
      SaveError: if its state cannot be saved.
      Interrupted: on a signal, if it is stoppable.
    """
    made_with.apply(job.settings)
    runs = [configs.resolve(run) for run in job.runs]
    with workdir.hold(job.work.folder), contextlib.ExitStack() as stack:
        group = make_group(runs, base)
        show = display.make_display(runs[0].num_steps, 0, group.about.words)
        stack.enter_context(contextlib.closing(show))
        show.note(job.title)
        saved = checkpoints.Checkpoints(job.work.folder)
        stack.enter_context(contextlib.closing(saved))
        members = [Member(job.folder / "trials" / name) for name in job.work.names]
        place = Place(saved, job.folder, show, tensorboard=False, stoppable=stoppable)
        training = Training(group, members, runs[0], place)
        training.run()
        return summarize(training)


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
