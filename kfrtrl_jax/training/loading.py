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
    config = configs.resolve(workdir.read_document(folder / workdir.CONFIG))
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
