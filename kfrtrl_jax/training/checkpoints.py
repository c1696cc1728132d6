"""Complete run states on disk, written atomically by Orbax.

A checkpoint is a flat dict of arrays named by their path in the state, with a digest of all bytes. A
restored state is bit for bit the saved one; otherwise the checkpoint is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from kfrtrl_jax._src.lanes import is_key
from kfrtrl_jax.errors import WorkdirError
from kfrtrl_jax.training import faults
from kfrtrl_jax.training.config import one_line

# Orbax logs every one of its steps, and the errors that it raises as well.
logging.getLogger("absl").addFilter(
    lambda record: record.levelno > logging.ERROR or "orbax" not in record.pathname
)


class SaveError(RuntimeError):
    """A state that could not be written; what was written before is untouched."""


class Restored(NamedTuple):
    """A checkpoint read back.

    Attributes:
      step: the step at which it was saved.
      state: the pytree.
      info: the plain values saved with it.
    """

    step: int
    state: Any
    info: dict[str, Any]


class Checkpoints(NamedTuple):
    """The checkpoints of a run.

    Attributes:
      save: (step, state, info) -> None; does nothing if there is a checkpoint of that step.
      restore: (like, warn) -> the newest intact checkpoint, or None if none was ever written. `like` is
        a pytree of shapes and dtypes; `warn` is called with a line for every broken checkpoint.
      last_step: () -> the newest checkpoint's step, or None.
      close: () -> None.
    """

    save: Callable[[int, Any, dict[str, Any]], None]
    restore: Callable[[Any, Callable[[str], None]], Restored | None]
    last_step: Callable[[], int | None]
    close: Callable[[], None]


def open_checkpoints(folder: Path, keep: int = 2) -> Checkpoints:
    """The checkpoints in a folder, of which the last `keep` are kept."""
    manager = ocp.CheckpointManager(
        folder.absolute(),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=False
        ),
    )

    def save(step: int, state: Any, info: dict[str, Any]) -> None:
        if step in manager.all_steps():
            return
        arrays = to_arrays(state)
        with _writing(f"the checkpoint of step {step}", folder):
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    info=ocp.args.JsonSave({**info, "digest": _digest(arrays)}),
                ),
            )

    def restore(like: Any, warn: Callable[[str], None]) -> Restored | None:
        steps = sorted(manager.all_steps(), reverse=True)
        broken: dict[int, str] = {}
        for step in steps:
            try:
                read = manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(), info=ocp.args.JsonRestore()
                    ),
                )
                info = dict(read["info"])
                if info.pop("digest") != _digest(read["state"]):
                    raise ValueError("its bytes are not those that were saved")
                state = from_arrays(read["state"], like)
            except Exception as error:
                broken[step] = one_line(error)[:200]
                continue
            for newer, reason in broken.items():
                warn(f"the checkpoint of step {newer} cannot be used ({reason})")
                manager.delete(newer)
            return Restored(step, state, info)
        if broken:
            raise WorkdirError(
                f"no checkpoint in {folder} can be used (steps {', '.join(map(str, broken))}: "
                f"{broken[steps[0]]}); remove that folder to start from the beginning"
            )
        return None

    return Checkpoints(save, restore, manager.latest_step, manager.close)


def save_parameters(folder: Path, parameters: Any) -> None:
    """Writes parameters to a folder, replacing its contents."""
    with (
        _writing("the parameters", folder),
        ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer,
    ):
        checkpointer.save(
            folder.absolute(), args=ocp.args.StandardSave(to_arrays(parameters)), force=True
        )


@contextlib.contextmanager
def _writing(what: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise SaveError(
            f"{what} cannot be written to {folder}: {faults.in_words(error)}"
        ) from error


def load_parameters(folder: Path, like: Any) -> Any:
    """Parameters from a folder such as WORKDIR/best.

    Args:
      folder: written by `save_parameters`.
      like: a pytree of arrays, or of their shapes and dtypes, with the expected structure.

    Raises:
      WorkdirError: if the parameters are missing, broken, or of another shape.
    """
    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    try:
        return from_arrays(
            checkpointer.restore(folder.absolute(), args=ocp.args.StandardRestore()), like
        )
    except Exception as error:
        message = f"no parameters can be read from {folder}: {one_line(error)[:200]}"
        raise WorkdirError(message) from error
    finally:
        checkpointer.close()


def to_arrays(tree: Any) -> dict[str, np.ndarray]:
    """A pytree as named arrays on the host: typed keys as their data, without empty arrays."""
    named, _ = jax.tree_util.tree_flatten_with_path(tree)
    arrays = {}
    for path, leaf in named:
        if leaf.size:
            data = jax.random.key_data(leaf) if is_key(leaf) else leaf
            # A copy: the device's buffer may be donated to the next chunk.
            arrays[jax.tree_util.keystr(path, simple=True, separator=".")] = np.array(data)
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray], like: Any) -> Any:
    """Undoes `to_arrays`.

    Raises:
      ValueError: if the names, shapes or dtypes are not those of `like`.
    """
    named, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in named]
    expected = {name for name, (_, leaf) in zip(names, named) if leaf.size}
    if expected != set(arrays):
        different = sorted(expected ^ set(arrays))
        raise ValueError(
            f"its arrays differ from those of this program: {', '.join(different[:3])}"
        )
    leaves = []
    for name, (_, leaf) in zip(names, named):
        if not leaf.size:
            leaves.append(jnp.zeros(leaf.shape, leaf.dtype))
            continue
        # A copy: an array on the host may share memory with the device, and then be donated.
        array = jnp.array(arrays[name], copy=True)
        array = jax.random.wrap_key_data(array) if is_key(leaf) else array
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            found, target = f"{array.dtype}{list(array.shape)}", f"{leaf.dtype}{list(leaf.shape)}"
            raise ValueError(f"{name} is {found}, not {target}")
        leaves.append(array)
    return jax.tree_util.tree_unflatten(structure, leaves)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
