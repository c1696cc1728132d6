"""The engine of a Ray cluster: a task per group, started again where its machine is lost.

The sweep's folder is on storage that all machines see under the same path, or its files are copied
through a storage that fsspec knows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import ray

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training.engines import jobs
from kfrtrl_jax.training.engines.jobs import Engine, Job, Outcome
from kfrtrl_jax.training.engines.remote import with_storage


def make_ray(address: str = "", cpus: float = 1.0, gpus: float = 0.0, storage: str = "") -> Engine:
    """An engine that gives each group to a task of Ray.

    Args:
      address: of a cluster; "" for one on this machine, which is started.
      cpus: processors of each task, that is of each group of trials.
      gpus: of each task; less than 1 for tasks that share one.
      storage: the URL of a folder for the files, see `remote.with_storage`; "" if all machines see the
        sweep's folder.

    Raises:
      ConfigError: if there is no cluster at the address, or if none of its machines has so much.
    """
    start(address)
    most = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in most):
        raise ConfigError(
            f"no machine of the Ray cluster has {cpus:g} processors and {gpus:g} GPUs for a task"
        )
    # A task is lost with its machine or its process, and then started again, however often.
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=-1)(_run)

    def run(all_jobs: Sequence[Job]) -> Iterable[tuple[Job, Outcome]]:
        waiting = {task.remote(job): job for job in all_jobs}
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            try:
                found: Outcome = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                found = error.cause if isinstance(error.cause, Exception) else error
            except ray.exceptions.RayError as error:
                found = error
            yield waiting.pop(done), found

    return with_storage(storage, Engine(run))


def start(address: str) -> None:
    """Joins a cluster, or starts one; does nothing in a process that has joined one.

    Raises:
      ConfigError: if there is no cluster at the address.
    """
    if ray.is_initialized():
        return
    # Tasks import what the program imports, also from the current directory.
    paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment: dict[str, Any] = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}
    try:
        ray.init(
            address=address or None,
            runtime_env=environment,
            include_dashboard=False,
            log_to_driver=True,
            logging_level="warning",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"no Ray cluster at {address!r}: {error}") from error


def _run(job: Job) -> jobs.Results:
    return jobs.run(job)
