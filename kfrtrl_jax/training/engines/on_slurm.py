"""The engine of Slurm: an array of jobs through submitit, one per group, requeued when preempted.

A job that is preempted or runs out of time is told so by a signal. It saves its state after the chunk
that it computes, and asks to be requeued. One that is lost without a result is submitted again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Sequence
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import display
from kfrtrl_jax.training.engines import jobs
from kfrtrl_jax.training.engines.jobs import Engine, Job, Outcome
from kfrtrl_jax.training.engines.remote import with_storage
from kfrtrl_jax.training.signals import Interrupted, catch_signals

_SECONDS_BETWEEN_LOOKS = 1.0
# How often a job may be lost without a word, by a kill or a failure of its node.
_MOST_LOSSES = 3
# A job that is requeued has made progress, so that it may run out of time however often.
_MOST_TIMEOUTS = 10**6


class Runner:
    """What a Slurm job calls; submitit asks it for what to do after a preemption."""

    def __call__(self, job: Job) -> jobs.Results:
        """Runs the job; on submitit's signal, saves its state before submitit requeues it."""
        number = _preemption_signal()
        try:
            return jobs.run(job, stop_on=[number])
        except Interrupted:
            # submitit's handler is in place again. It does not return.
            signal.raise_signal(number)
            raise

    def checkpoint(self, job: Job) -> submitit.helpers.DelayedSubmission:
        """The same job again, which goes on from its last checkpoint."""
        return submitit.helpers.DelayedSubmission(self, job)


def make_slurm(
    partition: str = "",
    minutes: int = 60,
    cpus: int = 1,
    gpus: int = 0,
    at_once: int = 100,
    setup: Sequence[str] = (),
    cluster: str = "",
    storage: str = "",
) -> Engine:
    """An engine that submits an array of jobs and waits for them.

    Args:
      partition: of the cluster; "" for its default.
      minutes: after which Slurm ends a job, which is then requeued.
      cpus: processors of each job, that is of each group of trials.
      gpus: of each job.
      at_once: the most jobs that run at the same time.
      setup: lines of the shell to run before each job, ["module load cuda"].
      cluster: "slurm", or "local" for processes of this machine; "" for Slurm where there is one.
      storage: the URL of a folder for the files, see `remote.with_storage`; "" if all machines see the
        sweep's folder.

    Raises:
      ConfigError: if there is no such cluster.
    """
    options: dict[str, Any] = {
        "name": "kfrtrl_jax",
        "timeout_min": minutes,
        "cpus_per_task": cpus,
        "slurm_array_parallelism": at_once,
        # Slurm itself requeues a job that it preempts or whose node fails.
        "slurm_additional_parameters": {"requeue": True},
        **({"gpus_per_node": gpus} if gpus else {}),
        **({"slurm_partition": partition} if partition else {}),
        **({"slurm_setup": [*setup], "local_setup": [*setup]} if setup else {}),
    }

    def run(all_jobs: Sequence[Job]) -> Iterable[tuple[Job, Outcome]]:
        if not all_jobs:
            return
        try:
            executor = submitit.AutoExecutor(
                folder=all_jobs[0].folder / "slurm",
                cluster=cluster or None,
                slurm_max_num_timeout=_MOST_TIMEOUTS,
                local_max_num_timeout=_MOST_TIMEOUTS,
            )
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"--engine=slurm: {error}") from error
        executor.update_parameters(**options)
        submitted = executor.map_array(Runner(), all_jobs)
        waiting = dict(zip(submitted, all_jobs, strict=True))
        losses = dict.fromkeys((job.work.folder for job in all_jobs), 0)
        with catch_signals() as signals, _cancelling(waiting):
            while waiting and not signals:
                finished = [job for job in waiting if job.done()]
                for each in finished:
                    job = waiting.pop(each)
                    problem = each.exception()
                    if problem is None:
                        yield job, each.result()
                    elif _is_lost(each, problem) and losses[job.work.folder] < _MOST_LOSSES:
                        losses[job.work.folder] += 1
                        display.say(f"note: {job.title}: lost ({each.state}), submitted again")
                        waiting[executor.submit(Runner(), job)] = job
                    else:
                        yield job, RuntimeError(_in_words(each, problem))
                if not finished:
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
        if signals and waiting:
            raise Interrupted(
                f"stopped by {signal.Signals(signals[0]).name}, its jobs are cancelled; the same "
                f"command continues them from their last checkpoints",
                signals[0],
            )

    return with_storage(storage, Engine(run))


@contextlib.contextmanager
def _cancelling(waiting: dict[Any, Job]) -> Any:
    """Cancels at the end the jobs that are still waited for."""
    try:
        yield
    finally:
        for job in waiting:
            with contextlib.suppress(Exception):
                job.cancel()


def _preemption_signal() -> int:
    """The signal that submitit has Slurm send."""
    return getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")


def _is_lost(job: submitit.Job[Any], problem: Exception) -> bool:
    """Whether a job has ended without a result or an error of its own, and nobody cancelled it."""
    return not isinstance(problem, FailedJobError) and not job.state.startswith("CANCELLED")


def _in_words(job: submitit.Job[Any], problem: Exception) -> str:
    """What ended a job, without its traceback, which is in its log."""
    lines = [line for line in str(problem).splitlines() if line.strip()]
    if isinstance(problem, FailedJobError):
        # The traceback's last line, before a line of dashes.
        ends = [i for i, line in enumerate(lines) if set(line) == {"-"}]
        lines = lines[ends[-1] - 1 : ends[-1]] if ends and ends[-1] else lines
    return f"{lines[0]} (log: {job.paths.stderr})"
