"""The engine of Slurm: an array of jobs through submitit, one per group, requeued when preempted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence

import submitit

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training.engines import jobs
from kfrtrl_jax.training.engines.jobs import Engine, Job, Outcome

_SECONDS_BETWEEN_LOOKS = 1.0


class _Runner:
    """What a Slurm job calls; submitit asks it for what to do after a preemption."""

    def __call__(self, job: Job) -> jobs.Results:
        return jobs.run(job)

    def checkpoint(self, job: Job) -> submitit.helpers.DelayedSubmission:
        """The same job again, which goes on from its last checkpoint."""
        return submitit.helpers.DelayedSubmission(self, job)


def make_slurm(
    partition: str = "",
    minutes: int = 60,
    cpus: int = 1,
    gpus: int = 0,
    at_once: int = 100,
    cluster: str = "",
) -> Engine:
    """An engine that submits an array of jobs and waits for them.

    Args:
      partition: of the cluster; "" for its default.
      minutes: after which Slurm ends a job, which is then requeued.
      cpus: processors of each job.
      gpus: of each job.
      at_once: the most jobs that run at the same time.
      cluster: "slurm", or "local" for processes of this machine; "" for Slurm where there is one.

    Raises:
      ConfigError: if there is no such cluster.
    """

    def engine(all_jobs: Sequence[Job]) -> Iterable[tuple[Job, Outcome]]:
        if not all_jobs:
            return
        logs = all_jobs[0].folder / "slurm"
        try:
            executor = submitit.AutoExecutor(folder=logs, cluster=cluster or None)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"--engine=slurm: {error}") from error
        executor.update_parameters(
            name="kfrtrl_jax",
            timeout_min=minutes,
            cpus_per_task=cpus,
            **({"gpus_per_node": gpus} if gpus else {}),
            **({"slurm_partition": partition} if partition else {}),
            slurm_array_parallelism=at_once,
        )
        submitted = executor.map_array(_Runner(), all_jobs)
        waiting = dict(zip(submitted, all_jobs, strict=True))
        try:
            while waiting:
                finished = [job for job in waiting if job.done()]
                for job in finished:
                    problem = job.exception()
                    found: Outcome = job.result() if problem is None else _as_exception(problem)
                    yield waiting.pop(job), found
                if not finished:
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            for job in waiting:
                with contextlib.suppress(Exception):
                    job.cancel()

    return engine


def _as_exception(problem: BaseException | str) -> Exception:
    return problem if isinstance(problem, Exception) else RuntimeError(str(problem))
