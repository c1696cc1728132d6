"""Characters of a corpus that every Python carries, with KF-RTRL: nothing to download.

Any text file or folder: --config.task.data_dir=PATH. TBPTT(25) instead of KF-RTRL:
--config.estimator.name=truncated --config.segment_length=25
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.num_steps = 60_000
    config.log_every = 100
    config.eval_every = 10_000
    config.eval_lanes = 32
    config.checkpoint_every = 10_000
    config.segment_length = 1

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 128})
    config.estimator = ConfigDict({"name": "kf_rtrl"})
    config.task = ConfigDict({"name": "text", "batch_size": 16})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 1e-3, "clip_norm": 1.0})
    return config
