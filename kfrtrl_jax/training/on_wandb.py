"""Weights & Biases: a run of it for each of ours, with the config, the records and the summary.

Nothing that fails there stops or changes a run. Records that it has not got when a run continues are
sent again from the log.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kfrtrl_jax._src.compositions.values import one_line
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import workdir
from kfrtrl_jax.training.loop import FREE_FIELDS
from kfrtrl_jax.training.sinks import Opener, Record, Sink

# After which a server that does not answer is given up.
_SECONDS_TO_BEGIN = 60.0
_SECONDS_TO_END = 30.0
# Projects to which this process could not send something.
_GIVEN_UP: set[str] = set()


class Named(NamedTuple):
    """A run as it is known there.

    Attributes:
      folder: for what the package writes.
      home: the absolute path of the workdir, or of the trial in it, on whatever machine it runs. It and
        the config determine the id, under which a run is continued.
      title: for people.
      config: as resolved, a nested dict.
      group: of the runs of a sweep; "" for none.
    """

    folder: Path
    home: str
    title: str
    config: Mapping[str, Any]
    group: str = ""


def require() -> None:
    """Checks that records can be sent, or kept for later.

    Raises:
      ConfigError: if the package is missing, or if nobody is logged in and it is not in offline mode.
    """
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError(
            f'--wandb needs the package {error.name}: pip install "kfrtrl_jax[wandb]"'
        ) from error
    if wandb.setup().settings.mode == "online" and not _is_logged_in(wandb):
        raise ConfigError(
            "--wandb needs an account: `wandb login`, or WANDB_MODE=offline to send the records later"
        )


def _is_logged_in(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False))
    # A server that does not answer now may do so later.
    except Exception:
        return True


def connect(
    project: str, runs: Sequence[Named], warn: Callable[[str], None]
) -> list[tuple[Opener, ...]]:
    """What sends the records of each run to a project; () for each if there is none.

    Args:
      project: its name, which may be "ENTITY/PROJECT"; "" for none.
      runs: which run side by side.
      warn: called with a line when something fails for the first time. This process sends nothing to
        the project after that, so that a sweep does not wait for a dead server in each of its groups.
    """
    if not project:
        return [() for _ in runs]

    def attempt(action: Callable[[], Any]) -> Any:
        if project in _GIVEN_UP:
            return None
        try:
            return action()
        # The package raises whatever its dependencies raise.
        except Exception as error:
            _GIVEN_UP.add(project)
            warn(f"nothing more is sent to W&B by this process: {one_line(error)[:300]}")
            return None

    return [(_opener(project, run, attempt),) for run in runs]


def _opener(project: str, run: Named, attempt: Callable[[Callable[[], Any]], Any]) -> Opener:
    def opener(records: Sequence[Record]) -> Sink:
        begun = attempt(lambda: _begin(project, run))
        exit_code = 1

        def write(record: Record) -> None:
            if begun is not None:
                attempt(lambda: _send(begun, record))

        def conclude(summary: Mapping[str, Any]) -> None:
            nonlocal exit_code
            exit_code = int("diverged_at" in summary)
            if begun is not None:
                attempt(lambda: begun.summary.update(dict(summary)))

        def close() -> None:
            if begun is not None:
                attempt(lambda: begun.finish(exit_code=exit_code))

        for record in records:
            write(record)
        return Sink(write, lambda: None, conclude, close)

    return opener


def _begin(project: str, run: Named) -> Any:
    wandb = importlib.import_module("wandb")
    entity, _, name = project.rpartition("/")
    settings = wandb.Settings(
        # Standard output is the program's own.
        console="off",
        silent=True,
        init_timeout=_SECONDS_TO_BEGIN,
        finish_timeout=_SECONDS_TO_END,
        disable_git=True,
        disable_code=True,
        # Many trials share a process, which would be measured for each of them.
        x_disable_stats=bool(run.group),
    )
    return wandb.init(
        entity=entity or None,
        project=name,
        id=_id_of(run),
        name=run.title,
        group=run.group or None,
        config=dict(run.config),
        dir=os.environ.get("WANDB_DIR", str(run.folder)),
        resume="allow",
        reinit="create_new",
        settings=settings,
    )


def _id_of(run: Named) -> str:
    flat = workdir.flatten(run.config)
    kept = {key: value for key, value in flat.items() if key not in FREE_FIELDS}
    return workdir.digest_of({"home": run.home, "config": kept})[:16]


def _send(begun: Any, record: Record) -> None:
    """Sends a record, unless it is there from before the run was continued."""
    if record["step"] >= begun.step:
        values = {k: v for k, v in record.items() if v is not None and k != "step"}
        begun.log(values, step=record["step"])
