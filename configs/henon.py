"""kfrtrl train --config=configs/henon.py --workdir=DIR

The Henon map one step ahead, with 8-OK.

Further ahead: --config.task.horizon=2.

NMSE 0.014 of the test stream after 100,000 steps, 142 s of one core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.num_steps = 100_000
    config.log_every = 1_000
    config.eval_every = 10_000
    config.eval_lanes = 1
    config.checkpoint_every = 10_000
    config.segment_length = 8
    config.update_every = 1
    # No lane of these series ever starts anew: an influence may grow until it is not finite. Segments
    # that are not finite are dropped, and their lanes begin again.
    config.on_nonfinite = "skip"

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 64})
    config.estimator = ConfigDict({"name": "ok", "rank": 8})
    config.task = ConfigDict({"name": "henon", "batch_size": 16})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 1e-4, "clip_norm": 1.0})
    return config
