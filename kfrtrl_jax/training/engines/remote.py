"""Engines for machines without a common file system: a sweep's folder and its copy on a storage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kfrtrl_jax.errors import WorkdirError
from kfrtrl_jax.training import checkpoints, made_with, workdir
from kfrtrl_jax.training.config import completed
from kfrtrl_jax.training.engines.jobs import Engine, Job, Outcome
from kfrtrl_jax.training.engines.storage import GROUPS, Group, Storage, StorageError
from kfrtrl_jax.training.loop import FREE_FIELDS


def with_storage(url: str, engine: Engine) -> Engine:
    """An engine whose jobs have their files on a storage, which copies them into the sweep's folder.

    Args:
      url: of a folder on the storage, "s3://bucket/sweep"; "" for none: all machines see the sweep's
        folder.
      engine: runs the jobs.

    Raises:
      ConfigError: see `Storage`.
    """
    if not url:
        return engine
    storage = Storage(url)

    def run(all_jobs: Sequence[Job]) -> Iterable[tuple[Job, Outcome]]:
        for job in all_jobs:
            _submit(storage, job)
        for job, found in engine.run([job._replace(storage=url) for job in all_jobs]):
            try:
                _bring(storage, job.work.folder.name, job.folder)
            except (StorageError, OSError) as error:
                found = error
            yield job, found

    return Engine(run, lambda folder: gather(storage, folder))


def gather(storage: Storage, folder: Path) -> None:
    """Brings what a storage has of a sweep into its folder, unless the folder is ahead of it.

    Args:
      storage: alone it is enough to go on with the sweep in a new folder.
      folder: bound to the sweep's trials, see `trials.claim`.

    Raises:
      WorkdirError: if the storage belongs to another sweep.
      StorageError: if it cannot be read.
    """
    storage.require()
    there, here = storage.read(workdir.CONFIG), workdir.read_document(folder / workdir.CONFIG)
    _refuse_another(storage.url, there or {}, here)
    made = storage.read(made_with.FILE)
    if made is not None and not (folder / made_with.FILE).exists():
        workdir.write_document(folder / made_with.FILE, made)
    for name in storage.names(GROUPS):
        _bring(storage, name, folder)


def _refuse_another(url: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    for trial in there.keys() & here.keys():
        before, now = completed(there[trial]), completed(here[trial])
        if different := workdir.differences(before, now, FREE_FIELDS):
            raise WorkdirError(
                f"storage {url} is that of another sweep: its trial {trial} is another one "
                f"({different}); choose another storage"
            )


def _bring(storage: Storage, name: str, folder: Path) -> None:
    group = Group(storage, name)
    listed = group.newest()
    here = checkpoints.last_written(folder / GROUPS / name)
    if listed.step >= (0 if here is None else here):
        group.fetch(folder, listed)


def _submit(storage: Storage, job: Job) -> None:
    """Puts a group's files on the storage, where what ran it before can no longer save."""
    for name in (workdir.CONFIG, made_with.FILE):
        storage.write(name, (job.folder / name).read_text())
    group = Group(storage, job.work.folder.name)
    group.take()
    group.push(job.folder, job.work.names)
