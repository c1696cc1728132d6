"""kfrtrl sweep --config=configs/sweep_layers.py --workdir=runs/layers

Four layers of linear recurrent units or of trace units: the influence inside of each layer alone and
truncation to one step, with an update at every step; and TBPTT(20) with one update for 20 steps.
"""

from typing import Any

from ml_collections import ConfigDict

from kfrtrl_jax.training.sweep import product, seeds


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 10_000
    config.log_every = 1_000
    config.segment_length = 1

    config.cell = _layers("lru")
    config.estimator = ConfigDict({"name": "truncated"})
    config.task = ConfigDict({"name": "copy", "batch_size": 16})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 1e-3, "clip_norm": 1.0})
    return config


def get_sweep() -> list[dict[str, Any]]:
    tasks = [
        {"task": "copy_fixed(batch_size=16, symbols=3, delay=10)"},
        {"task": "adding(batch_size=16, length=20)"},
    ]
    cells = [{"cell": _layers(name)} for name in ("lru", "rtu")]
    methods = [
        {"estimator": "layerwise(diagonal_rtrl())", "segment_length": 1, "update_every": 1},
        {"estimator": "truncated", "segment_length": 1, "update_every": 1},
        {"estimator": "truncated", "segment_length": 20, "update_every": 20},
    ]
    return product(tasks, cells, methods, seeds(3))


def _layers(name: str) -> str:
    return f"stack([{name}(hidden_size=32)] * 4, skip=True, norm='layer', mix='glu')"
