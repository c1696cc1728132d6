"""kfrtrl sweep --config=configs/sweep_shrink.py --workdir=runs/shrink

What shrinking an estimate towards truncation is worth: noisy estimators by themselves, the mean of two
copies, the mean shrunk by what part of it is signal, and truncation, on two tasks with three seeds.
"""

from typing import Any

from ml_collections import ConfigDict

from kfrtrl_jax.training.sweep import product, seeds


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 10_000
    config.log_every = 1_000
    config.segment_length = 8
    config.update_every = 1

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 64})
    config.estimator = ConfigDict({"name": "kf_rtrl"})
    config.task = ConfigDict({"name": "copy", "batch_size": 16})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 1e-3, "clip_norm": 1.0})
    return config


def get_sweep() -> list[dict[str, Any]]:
    tasks = [{"task": "copy(batch_size=16)"}, {"task": "text(batch_size=16)"}]
    estimators = [
        {"estimator": "truncated"},
        *[
            {"estimator": form.format(name)}
            for name in ("kf_rtrl", "uoro")
            for form in ("{}", "average({}, copies=2)", "shrink({}, copies=2)")
        ],
    ]
    return product(tasks, estimators, seeds(3))
