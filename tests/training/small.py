"""Configs that compile and run quickly, and the records of their runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from kfrtrl_jax.training import loop, metrics, plots
from kfrtrl_jax.training.config import resolve
from kfrtrl_jax.training.workdir import flatten

TIMES = ("wall_time", "steps_per_second")
COPY: dict[str, Any] = {
    "num_steps": 60,
    "log_every": 10,
    "checkpoint_every": 20,
    "cell": {"name": "vanilla", "hidden_size": 4},
    "estimator": {"name": "kf_rtrl"},
    "task": {"name": "copy", "batch_size": 2},
    "optimizer": {"name": "adam", "learning_rate": 1e-2},
}


def nested(changes: dict[str, Any]) -> dict[str, Any]:
    """COPY with fields changed by path; None takes a field away."""
    flat = {**flatten(COPY), **changes}
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        if value is not None:
            *parents, last = path.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
    return tree


def small(changes: dict[str, Any] | None = None) -> Any:
    """COPY with changes, resolved."""
    return resolve(nested(changes or {}))


@contextlib.contextmanager
def compiled_once(free: Sequence[str] = ()) -> Iterator[None]:
    """Runs of the same config and shapes share their compiled chunk, as its program is the same.

    Args:
      free: fields of the config that may differ.
    """
    compiled: dict[str, Any] = {}
    compile_chunk = loop.Training._compiled

    def once(training: loop.Training) -> Any:
        shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), training.state)
        config = training._config.to_dict()
        key = str((shapes, {name: config[name] for name in config if name not in free}))
        if key not in compiled:
            compiled[key] = compile_chunk(training)
        return compiled[key]

    loop.Training._compiled = once  # type: ignore[method-assign]
    try:
        yield
    finally:
        loop.Training._compiled = compile_chunk  # type: ignore[method-assign]


def unsaved_pictures(patched: Any) -> None:
    """Pictures are made but not rendered: for runs of which nobody looks at them."""
    patched.setattr(plots.Figure, "savefig", lambda *_, **__: None)


def text(folder: Any) -> dict[str, Any]:
    """Changes for a run on a small text, which is written to the folder."""
    folder.mkdir(exist_ok=True)
    for part, count in (("train", 40), ("valid", 5), ("test", 5)):
        (folder / f"{part}.txt").write_text("the cat sat on the mat. " * count)
    return {"task.name": "text", "task.data_dir": str(folder), "eval_every": 20, "eval_lanes": 3}


def timeless(result):
    """A result or record without its times."""
    return {name: value for name, value in result.items() if name not in TIMES}


def records(folder):
    """The lines of metrics.jsonl without their times."""
    return [timeless(record) for record in metrics.read(folder / "metrics.jsonl")]
