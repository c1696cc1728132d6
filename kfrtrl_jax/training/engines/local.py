"""The engine of this process: one group after another, each over all local devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training.engines import jobs
from kfrtrl_jax.training.engines.jobs import Engine, Job, Outcome
from kfrtrl_jax.training.group import alike
from kfrtrl_jax.training.program import Experiment
from kfrtrl_jax.training.signals import SIGNALS


def make_local(experiments: Mapping[str, Experiment] | None = None) -> Engine:
    """An engine that runs jobs in this process.

    Args:
      experiments: those that have been built, by what their trials have in common (`group.alike`).
    """
    built = experiments or {}

    def work(job: Job) -> jobs.Results:
        base = built.get(alike(configs.resolve(job.runs[0])))
        return jobs.run(job, base, stop_on=SIGNALS, patience=0.0)

    def run(all_jobs: Sequence[Job]) -> Iterable[tuple[Job, Outcome]]:
        return jobs.one_by_one(all_jobs, work)

    return Engine(run)
