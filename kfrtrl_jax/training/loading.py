"""A trained network, back from the workdir of its run."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax

from kfrtrl_jax.base import Cell, Readout, Task
from kfrtrl_jax.errors import ConfigError, WorkdirError
from kfrtrl_jax.training import checkpoints, workdir
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training.supervised import make_network


class Loaded(NamedTuple):
    """A trained network and what it was trained on.

    Attributes:
      config: the resolved config of the run.
      cell: for one lane, as the task reads it (tokens, for text).
      readout: from its output to predictions.
      parameters: {"cell": ..., "readout": ...}, as `learning.predict` takes them.
      task: with its vocabulary in `symbols`, if it is one of text.
    """

    config: Any
    cell: Cell
    readout: Readout
    parameters: dict[str, Any]
    task: Task


def load(folder: str | Path, which: str = "") -> Loaded:
    """The network of a run of `kfrtrl train`.

    Args:
      folder: the workdir.
      which: "best" for the parameters of the lowest validation loss, "final" for the last ones; "" for
        the best ones if there are any.

    Raises:
      WorkdirError: if the folder holds no finished run, or its parameters cannot be read.
      ConfigError: if its config does not fit this version of the library, or is one of control.
      DataError: if the data of its task is missing.
    """
    folder = Path(folder)
    if which not in ("", "best", "final"):
        raise ConfigError(f'which must be "best" or "final", got {which!r}')
    config = _config(folder)
    make = functools.partial(configs.make, config, floats=None)
    task = make("task")
    if not isinstance(task, Task):
        raise ConfigError(f"{folder} is a run of an actor-critic, which has no task to load")
    which = which or ("best" if (folder / "best").is_dir() else "final")
    if not (folder / which).is_dir():
        raise WorkdirError(f"{folder} has no {which} parameters: the run must be finished first")
    cell, readout = make_network(task, make)

    def init(key: Any) -> dict[str, Any]:
        return {"cell": cell.init(key), "readout": readout.init(key)}

    like = jax.eval_shape(init, jax.random.key(0))
    parameters = checkpoints.load_parameters(folder / which, like)
    return Loaded(config, cell, readout, parameters, task)


def _config(folder: Path) -> Any:
    """The resolved config of the run in a folder.

    Raises:
      WorkdirError: if it is no run's folder, or its config is damaged.
      ConfigError: if this version does not read it.
    """
    if not (folder / workdir.CONFIG).exists():
        what = f"it has no {workdir.CONFIG}" if folder.is_dir() else "there is no such folder"
        raise WorkdirError(f"{folder} is no workdir of a run: {what}")
    stored = workdir.read_document(folder / workdir.CONFIG)
    if stored and all(name.isdigit() for name in stored):
        first = folder / "trials" / min(stored)
        raise WorkdirError(f"{folder} is the workdir of a sweep: load one of its trials, {first}")
    try:
        return configs.resolve(stored)
    except ConfigError as error:
        raise ConfigError(
            f"{folder} is of another version of kfrtrl_jax, or of factories that this process does not "
            f"have: {error}"
        ) from error
