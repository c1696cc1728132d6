"""A learner as a file that another process trains with, without this library: by `jax.export`."""

from __future__ import annotations

import importlib.util
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax._src.base import Array, Batch
from kfrtrl_jax._src.lanes import is_key
from kfrtrl_jax._src.learning import trees
from kfrtrl_jax._src.learning.door import stacked
from kfrtrl_jax._src.learning.pending import Pending
from kfrtrl_jax._src.learning.types import Learner, LearnerState, StepMetrics

_FUNCTIONS = {
    "init": "(key: uint32[2], as jax.random.key_data gives it) -> state",
    "step": "(state, inputs, targets, reset) -> (state, metrics)",
    "predict": "(state, inputs, reset) -> (predictions, pending)",
    "update": "(state, pending, targets) -> (state, metrics)",
}


def export(
    learner: Learner,
    path: str | Path,
    example_target: Any,
    *,
    state: LearnerState | None = None,
    platforms: Sequence[str] | None = None,
) -> None:
    """Writes a learner to a file, with which any process that has JAX can train on a stream of its own.

    The file is a zip archive of programs, each of them an artifact of `jax.export`: `init`, `step`
    and, if K = 1 and there is no credit, `predict` and `update`; see `Learner`. Beside them
    `about.json` tells their arguments, with shapes and types, and `state.npz` the given state. There,
    the state is a dict of arrays by name, such as "parameters/cell/weights", PRNG keys as uint32;
    inputs, targets and reset are [B, ...] if K = 1, else [K, B, ...]; metrics are a dict of loss,
    gradient_norm and predictions. To load it, with JAX and flatbuffers:

        with zipfile.ZipFile(path) as file:
            programs = {
                name: jax.jit(jax.export.deserialize(bytearray(file.read(name))).call)
                for name in ("init", "predict", "update")
            }

    Args:
      learner: from `make_learner`.
      path: of the file.
      example_target: one lane's target, for its shape and type.
      state: to start from there, in place of `init`.
      platforms: what the programs are for, of "cpu", "cuda", "rocm" and "tpu"; that of this process if
        None.

    Raises:
      ImportError: if flatbuffers is not installed: the extra `export`.
      ValueError: if the cell, the readout or the loss calls the host or uses an operation that
        `jax.export` does not guarantee to work later, by its name; if two arrays of the state have the
        same name, or one that is to be written is of a type that NumPy's files do not hold.
    """
    _require_flatbuffers()
    lanes = learner.linearizer.structure.batch_size
    axes = (lanes,) if learner.segment_length == 1 else (learner.segment_length, lanes)
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    inputs, targets = stacked(learner.example_input, *axes), stacked(example_target, *axes)
    reset = jax.ShapeDtypeStruct(axes, bool)
    like = jax.eval_shape(lambda data: learner.init(jax.random.wrap_key_data(data)), key)
    packed = jax.eval_shape(_packed, like)
    _check_names(like)
    if state is not None:
        _check_types(packed)
    programs = _programs(learner, like)
    blobs = {
        "init": _exported("init", programs["init"], platforms, key),
        "step": _exported("step", programs["step"], platforms, packed, inputs, targets, reset),
    }
    if learner.segment_length == 1 and like.credit == ():
        pending = jax.eval_shape(programs["predict"], packed, inputs, reset)[1]
        blobs["predict"] = _exported(
            "predict", programs["predict"], platforms, packed, inputs, reset
        )
        blobs["update"] = _exported(
            "update", programs["update"], platforms, packed, pending, targets
        )
    about = {
        "programs": {name: _FUNCTIONS[name] for name in blobs},
        "inputs": _shown(inputs),
        "targets": _shown(targets),
        "reset": _shown(reset),
        "state": _shown(packed),
        "unit of the loss": learner.unit,
        "platforms": list(platforms or [jax_export.default_export_platform()]),
        "jax": jax.__version__,
        "jax_enable_x64": bool(jax.config.read("jax_enable_x64")),
    }
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("about.json", json.dumps(about, indent=1) + "\n")
        for name, blob in blobs.items():
            file.writestr(name, blob)
        if state is not None:
            arrays = io.BytesIO()
            np.savez(arrays, **jax.tree.map(np.asarray, _packed(state)))
            file.writestr("state.npz", arrays.getvalue())


def _check_names(state: LearnerState) -> None:
    names = [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    if (twice := trees.repeated(names)) is not None:
        raise ValueError(
            f"two arrays of the state have the name {twice}: an exported learner tells them by "
            f'name; rename a parameter that has "/" in its own'
        )


def _check_types(packed: Mapping[str, Any]) -> None:
    for name, array in packed.items():
        if np.dtype(array.dtype).kind == "V":
            raise ValueError(
                f"{name} is {array.dtype}, which NumPy's files do not hold: export without state=, and "
                f'start from the program "init"'
            )


def _require_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError(
            "jax.export writes files by flatbuffers, which is not installed: pip install "
            "'kfrtrl_jax[export]'"
        )


def _programs(learner: Learner, like: LearnerState) -> dict[str, Callable[..., Any]]:
    """The learner's functions, of plain dicts and tuples of arrays."""
    kind: list[Pending] = []

    def init(data: Array) -> dict[str, Array]:
        return _packed(learner.init(jax.random.wrap_key_data(data)))

    def step(state: Any, inputs: Any, targets: Any, reset: Array) -> tuple[Any, dict[str, Any]]:
        new, metrics = learner.step(_unpacked(state, like), Batch(inputs, targets, reset))
        return _packed(new), _told(metrics)

    def predict(state: Any, inputs: Any, reset: Array) -> tuple[Any, tuple[Array, ...]]:
        predictions, pending = learner.predict(_unpacked(state, like), inputs, reset)
        # What belongs together is known from here on, by `update` too.
        kind[:] = [pending]
        return predictions, tuple(map(_plain, pending.arrays))

    def update(state: Any, arrays: Any, targets: Any) -> tuple[Any, dict[str, Any]]:
        (pending,) = kind
        typed = tuple(map(_like, arrays, pending.arrays))
        whole = Pending(typed, pending.structure, pending.places)
        new, metrics = learner.update(_unpacked(state, like), whole, targets)
        return _packed(new), _told(metrics)

    return {"init": init, "step": step, "predict": predict, "update": update}


def _exported(
    name: str, function: Callable[..., Any], platforms: Sequence[str] | None, *arguments: Any
) -> bytes:
    jitted = jax.jit(function)
    for equation in jax_internals.all_equations(jitted.trace(*arguments).jaxpr.jaxpr):
        primitive = equation.primitive
        if "callback" in primitive.name or primitive.name == "debug_print":
            where = jax_internals.origin(primitive, equation.source_info)
            raise ValueError(
                f"{name} cannot be exported: {where} calls back to this process; take it out of the "
                f"cell, the readout, the loss or the optimizer"
            )
    try:
        return bytes(jax_export.export(jitted, platforms=platforms)(*arguments).serialize())
    except (ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{name} cannot be exported: {reason}") from error


def _packed(state: LearnerState) -> dict[str, Array]:
    """The arrays of a state by name."""
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    return {_name(path): _plain(leaf) for path, leaf in paths}


def _unpacked(arrays: Mapping[str, Array], like: LearnerState) -> LearnerState:
    """The state of these arrays; its structure and types are those of another one."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    leaves = [_like(arrays[_name(path)], leaf) for path, leaf in paths]
    state: LearnerState = jax.tree.unflatten(structure, leaves)
    return state


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _plain(x: Any) -> Array:
    return jax.random.key_data(x) if is_key(x) else jnp.asarray(x)


def _like(x: Array, like: Any) -> Array:
    return jax.random.wrap_key_data(x) if is_key(like) else x


def _told(metrics: StepMetrics) -> dict[str, Any]:
    return {
        "loss": metrics.loss,
        "gradient_norm": metrics.gradient_norm,
        "predictions": metrics.predictions,
    }


def _shown(tree: Any) -> Any:
    return jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)
