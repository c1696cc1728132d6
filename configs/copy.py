"""kfrtrl train --config=configs/copy.py --workdir=DIR

The copy task at the published size (n = 128, batch 16) with SnAp-1 in blocks of 8 steps, which
RESULTS.md has among the first for this network at the same time. The paper's own training:
--config.estimator=kf_rtrl --config.segment_length=1 --config.immediate=estimated.

T* 9 after 30,000 steps, 25 s of one core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.num_steps = 30_000
    config.log_every = 200
    config.checkpoint_every = 5_000
    config.segment_length = 8
    config.update_every = 1

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 128})
    config.estimator = ConfigDict({"name": "snap"})
    config.task = ConfigDict({"name": "copy", "batch_size": 16})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 10**-3.5, "clip_norm": 1.0})
    return config
