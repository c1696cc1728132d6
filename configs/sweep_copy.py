"""kfrtrl sweep --config=configs/sweep_copy.py --workdir=runs/sweep

A small sweep on the copy task: estimators, learning rates and seeds.
"""

from typing import Any

from ml_collections import ConfigDict

from kfrtrl_jax.training.sweep import grid, product, seeds


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.num_steps = 10_000
    config.log_every = 100
    config.segment_length = 1

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 32})
    config.estimator = ConfigDict({"name": "kf_rtrl"})
    config.task = ConfigDict({"name": "copy", "batch_size": 16})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 1e-3, "clip_norm": 1.0})
    return config


def get_sweep() -> list[dict[str, Any]]:
    estimators = grid(**{"estimator.name": ["kf_rtrl", "uoro", "truncated"]})
    learning_rates = grid(**{"optimizer.learning_rate": [10**-2.5, 10**-3, 10**-3.5]})
    return product(estimators, learning_rates, seeds(3))
