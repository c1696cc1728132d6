"""Complete run states on disk, written atomically by Orbax.

A saved tree is a flat dict of arrays named by their path, beside plain values, its info. A digest
covers all bytes of both. What is read back is bit for bit what was saved; otherwise it is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from kfrtrl_jax._src.compositions.values import one_line
from kfrtrl_jax._src.lanes import is_key
from kfrtrl_jax._src.learning import trees
from kfrtrl_jax.errors import ConfigError, WorkdirError
from kfrtrl_jax.training import faults, workdir
from kfrtrl_jax.training.sharding import whole

# Of the layout of what is saved; a checkpoint of another one is refused by name.
FORMAT = 1
FOLDER = "checkpoints"
# Says which checkpoint was written last, beside the folder, so that an emptied folder is noticed.
LATEST = "checkpoint.json"
_SEAL = "files.sha256"

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


class Checkpoints:
    """The checkpoints of a run: WORKDIR/checkpoints/STEP, of which the last few are kept."""

    def __init__(self, home: Path, keep: int = 2, after_save: Callable[[], None] | None = None):
        """Opens the checkpoints of a workdir.

        Args:
          home: the workdir.
          keep: how many are kept.
          after_save: called when a checkpoint is whole.
        """
        self._home, self._after_save = home, after_save
        self._folder = home / FOLDER
        # With a set of processes Orbax does not create it.
        self._folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=False,
                enable_async_checkpointing=False,
                multiprocessing_options=_alone(),
            ),
        )

    def save(self, step: int, state: Any, info: Mapping[str, Any]) -> None:
        """Saves a state, unless there is a checkpoint of that step.

        Raises:
          SaveError: if it cannot be written.
        """
        if step in self._manager.all_steps():
            return
        try:
            self._manager.save(step, args=_saved(state, info))
            _seal(self._folder / str(step))
        except Exception as error:
            shutil.rmtree(self._folder / str(step), ignore_errors=True)
            raise SaveError(
                f"the checkpoint of step {step} cannot be written to {self._folder}: "
                f"{faults.in_words(error)}"
            ) from error
        workdir.write_document(self._home / LATEST, {"step": step})
        if self._after_save is not None:
            self._after_save()

    def restore(self, like: Any, warn: Callable[[str], None]) -> Restored | None:
        """The newest whole checkpoint; None if none was ever written.

        Args:
          like: a pytree of shapes and dtypes.
          warn: called with a line for every damaged checkpoint, which is moved to WORKDIR/set_aside/.

        Raises:
          WorkdirError: if there were checkpoints and none can be used.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged: dict[int, str] = {}
        for step in steps:
            try:
                _check_seal(self._folder / str(step))
                arrays, info = _checked(self._manager.restore(step, args=_both()))
            except Exception as error:
                damaged[step] = one_line(error)[:200]
                continue
            for newer, reason in damaged.items():
                place = workdir.set_aside(self._folder / str(newer), self._home)
                warn(f"the checkpoint of step {newer} cannot be used ({reason}); moved to {place}")
            self._manager.reload()
            latest = last_written(self._home)
            if latest is not None and latest > steps[0]:
                warn(f"the checkpoint of step {latest}, the last one written, is gone")
            return Restored(step, _fitted(arrays, like, f"the checkpoint of step {step}"), info)
        if damaged:
            raise WorkdirError(
                f"no checkpoint in {self._folder} can be used (steps "
                f"{', '.join(map(str, damaged))}: {damaged[steps[0]]}); put a copy back if there is "
                f"one, or choose another --workdir to start from the beginning"
            )
        if last_written(self._home) is not None:
            raise WorkdirError(
                f"the checkpoints of {self._home} are gone: {self._folder} is empty, but one was "
                f"written; put a copy back if there is one, or choose another --workdir to start from "
                f"the beginning"
            )
        return None

    def last_step(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def close(self) -> None:
        """Releases what Orbax holds."""
        self._manager.close()


def last_written(home: Path) -> int | None:
    """The step of the last checkpoint that was written, 0 if unknown; None if there was none."""
    try:
        return workdir.read_document(home / LATEST)["step"]
    except WorkdirError:
        return 0 if (home / LATEST).exists() else None


def was_written(home: Path) -> bool:
    """Whether a workdir has, or had, a checkpoint."""
    return (home / LATEST).exists() or any((home / FOLDER).glob("[0-9]*"))


def last_good(step: int | None) -> str:
    """Says which checkpoint is the newest whole one."""
    return "no checkpoint yet" if step is None else f"the last good checkpoint is of step {step}"


def save_parameters(folder: Path, parameters: Any) -> None:
    """Writes parameters to a folder, in place of what is there.

    Raises:
      SaveError: if they cannot be written; the folder is then as it was.
    """
    new = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")
    try:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        with _checkpointer() as checkpointer:
            checkpointer.save(new.absolute(), args=_saved(parameters, {}))
        _seal(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except Exception as error:
        raise SaveError(
            f"the parameters cannot be written to {folder}: {faults.in_words(error)}"
        ) from error
    shutil.rmtree(old, ignore_errors=True)


def load_parameters(folder: Path, like: Any) -> Any:
    """Parameters from a folder such as WORKDIR/best.

    Args:
      folder: written by `save_parameters`.
      like: a pytree of arrays, or of their shapes and dtypes, with the expected structure.

    Raises:
      WorkdirError: if the parameters are missing, damaged, or of another shape.
    """
    return _fitted(read_arrays(folder), like, f"what is in {folder}")


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The same parameters as arrays by their paths, as `to_arrays` has them.

    Raises:
      WorkdirError: if they are missing or damaged.
    """
    try:
        _check_seal(folder)
        with _checkpointer() as checkpointer:
            return _checked(checkpointer.restore(folder.absolute(), args=_both()))[0]
    except Exception as error:
        message = f"no parameters can be read from {folder}: {one_line(error)[:200]}"
        raise WorkdirError(message) from error


def _alone() -> Any:
    """Options by which Orbax waits for no other process: each has folders of its own."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )


def _checkpointer() -> ocp.Checkpointer:
    options = ocp.CompositeOptions(multiprocessing_options=_alone())
    handler = ocp.CompositeCheckpointHandler(composite_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=_alone())


def _seal(folder: Path) -> None:
    """Writes a digest of all files beside them, so that Orbax need not read damaged ones."""
    workdir.write_text(folder / _SEAL, _digest_of_files(folder))


def _check_seal(folder: Path) -> None:
    """Checks the files against their digest, if there is one: a process may end before it is written.

    Raises:
      ValueError: if they are not those that were written.
    """
    seal = folder / _SEAL
    if seal.exists() and seal.read_bytes() != _digest_of_files(folder).encode():
        raise ValueError("its bytes are not those that were saved")


def _digest_of_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (_SEAL, f".{_SEAL}.tmp"):
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
            with open(path, "rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
    return digest.hexdigest()


def _saved(tree: Any, info: Mapping[str, Any]) -> ocp.args.Composite:
    """What Orbax writes: arrays, and the info with a digest of both."""
    arrays, info = to_arrays(tree), workdir.plain({**info, "format": FORMAT})
    return ocp.args.Composite(
        state=ocp.args.StandardSave(arrays),
        info=ocp.args.JsonSave({**info, "digest": _digest(arrays, info)}),
    )


def _both() -> ocp.args.Composite:
    """What Orbax reads of it."""
    return ocp.args.Composite(state=ocp.args.StandardRestore(), info=ocp.args.JsonRestore())


def _checked(read: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the info of what Orbax has read.

    Raises:
      ValueError: if they are not what was saved, or were saved in another format.
    """
    arrays, info = dict(read["state"]), dict(read["info"])
    if info.pop("digest", None) != _digest(arrays, info):
        raise ValueError("its bytes are not those that were saved")
    if info.pop("format", None) != FORMAT:
        raise ValueError("it has the format of another version of kfrtrl_jax")
    return arrays, info


def _fitted(arrays: Mapping[str, np.ndarray], like: Any, what: str) -> Any:
    """The pytree of the arrays.

    Raises:
      WorkdirError: if it is of another form.
    """
    try:
        return from_arrays(arrays, like)
    except ValueError as error:
        raise WorkdirError(
            f"{what} is whole, but does not fit this program: {error}; was it made by another version "
            f"of kfrtrl_jax?"
        ) from error


def to_arrays(tree: Any) -> dict[str, np.ndarray]:
    """A pytree as named arrays on the host: typed keys as their data, without empty arrays."""
    # A copy: the device's buffer may be donated to the next chunk.
    return {name: np.array(whole(data)) for name, data in to_data(tree).items()}


def to_data(tree: Any) -> dict[str, Any]:
    """The same, where they are.

    Raises:
      ConfigError: if two arrays have the same name.
    """
    return {
        name: jax.random.key_data(leaf) if is_key(leaf) else leaf
        for name, leaf in zip(names_of(tree), jax.tree.leaves(tree), strict=True)
        if leaf.size
    }


def names_of(tree: Any) -> list[str]:
    """The names of its arrays: their paths, joined by dots.

    Raises:
      ConfigError: if two are the same.
    """
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
    if (twice := trees.repeated(names)) is not None:
        raise ConfigError(
            f"two arrays have the name {twice}, and a checkpoint tells them by name: rename an entry "
            f"of the cell's or readout's parameters or carry that has a '.' in its own"
        )
    return names


def from_arrays(arrays: Mapping[str, np.ndarray], like: Any) -> Any:
    """Undoes `to_arrays`.

    Raises:
      ValueError: if the names, shapes or dtypes are not those of `like`.
    """
    likes, structure = jax.tree.flatten(like)
    names = names_of(like)
    expected = {name for name, leaf in zip(names, likes) if leaf.size}
    if expected != set(arrays):
        different = sorted(expected ^ set(arrays))
        raise ValueError(
            f"its arrays differ from those of this program: {', '.join(different[:3])}"
        )
    leaves = []
    for name, leaf in zip(names, likes):
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


def _digest(arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(info, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
