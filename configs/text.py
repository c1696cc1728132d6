"""Characters of a corpus that comes with every Python, with 8-OK: nothing to download.

Any text file or folder: --config.task.data_dir=PATH. TBPTT with an update at every step:
--config.estimator.name=truncated; KF-RTRL: --config.estimator.name=kf_rtrl.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.num_steps = 60_000
    config.log_every = 200
    config.eval_every = 10_000
    config.eval_lanes = 32
    config.checkpoint_every = 10_000
    config.segment_length = 8
    config.update_every = 1

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 128})
    config.estimator = ConfigDict({"name": "ok", "rank": 8})
    config.task = ConfigDict({"name": "text", "batch_size": 16})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 1e-3, "clip_norm": 1.0})
    return config
