"""The copy task with KF-RTRL, at the published setting (n = 128, batch 16).

Another estimator: --config.estimator.name=uoro (rtrl, truncated, ...), or a composition:
--config.estimator="average(kf_rtrl, copies=4)".
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.num_steps = 30_000
    config.log_every = 100
    config.checkpoint_every = 5_000
    config.segment_length = 1

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 128})
    config.estimator = ConfigDict({"name": "kf_rtrl"})
    config.task = ConfigDict({"name": "copy", "batch_size": 16})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 10**-3.5, "clip_norm": 1.0})
    return config
