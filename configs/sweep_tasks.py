"""kfrtrl sweep --config=configs/sweep_tasks.py --workdir=runs/tasks

Every generated task with every kind of gradient: three seeds, n = 64, an update at every step, the same
number of updates. The exact part of "window" reaches back 64 steps; the others push blocks of 8 steps.
"""

from typing import Any

from ml_collections import ConfigDict

from kfrtrl_jax.training.sweep import product, seeds

TASKS = [
    "adding(length=20)",
    "copy_fixed",
    "anbn",
    "flip_flop",
    "delayed_match",
    "context_integration",
    "henon",
    "mackey_glass",
    "lorenz",
    "trace_conditioning",
    "noisy_patterning",
    "trace_patterning",
    "t_maze(corridor=20)",
    "memory_chain(length=20)",
    "mnist1d",
]
METHODS: dict[str, dict[str, Any]] = {
    "window": {"estimator": "truncated", "segment_length": 8, "window": 64},
    "KF-RTRL": {"estimator": "kf_rtrl", "segment_length": 8},
    "8-OK": {"estimator": "ok(rank=8)", "segment_length": 8},
    "SnAp-1": {"estimator": "snap", "segment_length": 8},
    "UORO": {"estimator": "uoro", "segment_length": 8},
    "truncated": {"estimator": "truncated", "segment_length": 1},
}


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 8_000
    config.log_every = 800
    config.segment_length = 8
    config.update_every = 1

    config.cell = ConfigDict({"name": "gru", "hidden_size": 64})
    config.estimator = ConfigDict({"name": "kf_rtrl"})
    config.task = ConfigDict({"name": "copy", "batch_size": 8})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 1e-3, "clip_norm": 1.0})
    return config


def get_sweep() -> list[dict[str, Any]]:
    tasks = [{"task": _with_lanes(task)} for task in TASKS]
    return product(tasks, list(METHODS.values()), seeds(3))


def _with_lanes(task: str, lanes: int = 8) -> str:
    name, _, arguments = task.rstrip(")").partition("(")
    return f"{name}({', '.join(filter(None, [arguments, f'batch_size={lanes}']))})"
