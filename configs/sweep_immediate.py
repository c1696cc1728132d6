"""kfrtrl sweep --config=configs/sweep_immediate.py --workdir=runs/immediate

Whether immediate derivatives suffice with an optimizer that divides by second moments: truncation to
one step by three optimizers, beside exact RTRL and RTRL along few random paths.
"""

from typing import Any

from ml_collections import ConfigDict

from kfrtrl_jax.training.sweep import product, seeds


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 10_000
    config.log_every = 1_000
    config.segment_length = 1

    config.cell = ConfigDict({"name": "gru", "hidden_size": 32})
    config.estimator = ConfigDict({"name": "truncated"})
    config.task = ConfigDict({"name": "copy", "batch_size": 8})
    config.optimizer = ConfigDict({"name": "rmsprop", "learning_rate": 1e-3, "clip_norm": 1.0})
    return config


def get_sweep() -> list[dict[str, Any]]:
    tasks = [
        {"task": "copy_fixed(batch_size=8, symbols=3, delay=10)"},
        {"task": "t_maze(batch_size=8, corridor=20)"},
        {"task": "mackey_glass(batch_size=8)"},
    ]
    methods = [
        {"estimator": "truncated", "optimizer": "rmsprop(learning_rate=0.001)"},
        {"estimator": "truncated", "optimizer": "adam(learning_rate=0.001)"},
        {"estimator": "truncated", "optimizer": "sgd(learning_rate=0.1)"},
        {
            "estimator": "random_transport(rtrl, paths=4)",
            "optimizer": "rmsprop(learning_rate=0.001)",
        },
        {"estimator": "rtrl", "optimizer": "rmsprop(learning_rate=0.001)"},
        {"estimator": "rtrl", "optimizer": "sgd(learning_rate=0.1)"},
    ]
    return product(tasks, methods, seeds(3))
