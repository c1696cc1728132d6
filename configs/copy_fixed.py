"""kfrtrl train --config=configs/copy_fixed.py --workdir=DIR

The copying problem: 3 symbols recalled after a delay of 10 steps.

Accuracy 1.00 over the last steps after 100,000 steps, 47 s of one core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.num_steps = 100_000
    config.log_every = 1_000
    config.checkpoint_every = 10_000
    config.segment_length = 8
    config.update_every = 1

    config.cell = ConfigDict({"name": "gru", "hidden_size": 64})
    config.estimator = ConfigDict({"name": "snap"})
    config.task = ConfigDict({"name": "copy_fixed", "batch_size": 16, "symbols": 3, "delay": 10})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 1e-3, "clip_norm": 1.0})
    return config
