"""What a finished run has left, read back from its workdir."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kfrtrl_jax.errors import WorkdirError
from kfrtrl_jax.training import metrics, outcomes, trials, workdir


class Finished(NamedTuple):
    """A run that came to its end.

    Attributes:
      config: as resolved.
      summary: its last figures.
      records: its log.
    """

    config: dict[str, Any]
    summary: dict[str, Any]
    records: list[metrics.Record]


def read_run(folder: Path, warn: Callable[[str], None]) -> Finished:
    """Reads a run, or a trial of a sweep.

    Args:
      folder: the workdir, or that of the trial.
      warn: called with a line if the log has lost lines.

    Raises:
      WorkdirError: if the run is not finished, or a file is damaged.
    """
    if not (folder / workdir.SUMMARY).exists():
        raise WorkdirError(f"{folder} has no {workdir.SUMMARY}: its run is not finished")
    config = workdir.read_document(folder / workdir.CONFIG)
    summary = workdir.read_document(folder / workdir.SUMMARY)
    records = metrics.read_for(folder, summary.get("step", 0), config["log_every"], warn)
    return Finished(config, summary, records)


def read_settings(folder: Path, warn: Callable[[str], None]) -> dict[str, list[Finished]]:
    """Reads a run, or the trials of a sweep by their setting.

    Args:
      folder: the workdir.
      warn: called with a line if a log has lost lines, or if trials of a sweep are not finished.

    Returns:
      The runs of each setting, in words; "" for the only one.

    Raises:
      WorkdirError: if no run is finished, or a file is damaged.
    """
    if not (folder / trials.RESULTS).exists():
        return {"": [read_run(folder, warn)]}
    done = trials.finished(folder, warn)
    runs = [read_run(folder / "trials" / trial["trial"], warn) for trial in done]
    settings = outcomes.by_setting([trial["overrides"] for trial in done])
    if len(settings) == 1:
        return {"": runs}
    return {label: [runs[i] for i in members] for label, members in settings.items()}
