"""kfrtrl train --config=configs/mackey_glass.py --workdir=DIR

The Mackey-Glass series six units of time ahead, with 8-OK.

The long horizon of the literature: --config.task.horizon=84.

NMSE 0.0019 of the test stream after 100,000 steps, 243 s of one core.
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
    config.task = ConfigDict({"name": "mackey_glass", "batch_size": 16, "horizon": 6})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 10**-3.5, "clip_norm": 1.0})
    return config
