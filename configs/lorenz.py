"""kfrtrl train --config=configs/lorenz.py --workdir=DIR

The Lorenz system five steps (a quarter of a unit of time) ahead, with 8-OK.

Another horizon, in steps of 0.05: --config.task.horizon=10.

NMSE 0.0029 of the test stream after 100,000 steps, 131 s of one core.
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
    config.task = ConfigDict({"name": "lorenz", "batch_size": 16, "horizon": 5})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 1e-3, "clip_norm": 1.0})
    return config
