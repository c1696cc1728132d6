"""kfrtrl train --config=configs/mnist1d.py --workdir=DIR

MNIST-1D (Greydanus and Kobak, 2020) value by value, with SnAp-1 in blocks of 8 steps.

It needs the package mnist1d: pip install "kfrtrl_jax[mnist1d]".

Accuracy 0.68 on the test data after 400,000 steps, 27 s of one core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.num_steps = 400_000
    config.log_every = 4_000
    config.eval_every = 40_000
    config.eval_lanes = 100
    config.checkpoint_every = 40_000
    config.segment_length = 8
    config.update_every = 8

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 64})
    config.estimator = ConfigDict({"name": "snap"})
    config.task = ConfigDict({"name": "mnist1d", "batch_size": 16})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 1e-3, "clip_norm": 1.0})
    return config
