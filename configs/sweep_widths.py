"""kfrtrl sweep --config=configs/sweep_widths.py --workdir=runs/widths

Networks of four widths trained on the copy task, along which the noise of estimators is measured:
kfrtrl noise --config.trained=runs/widths --config.stream="copy(batch_size=2, initial_length=6)"

On the Penn Treebank: --config.task="penn_treebank(batch_size=32)" --config.num_steps=60000.
"""

from typing import Any

from ml_collections import ConfigDict

from kfrtrl_jax.training.sweep import grid


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 200_000
    config.log_every = 2_000
    config.segment_length = 8
    config.update_every = 1

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 128})
    config.estimator = ConfigDict({"name": "snap"})
    config.task = ConfigDict({"name": "copy", "batch_size": 16, "initial_loss": 1.0})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 10**-3.5, "clip_norm": 1.0})
    return config


def get_sweep() -> list[dict[str, Any]]:
    return grid(**{"cell.hidden_size": (16, 32, 64, 128)})
