"""Character-level Penn Treebank with 8-OK, an update at every step (n = 256, batch 32, as published).

The folder with ptb.train.txt and its companions: KFRTRL_DATA_DIR or --config.task.data_dir=DIR.
TBPTT with an update at every step: --config.estimator.name=truncated. The paper's own training, KF-RTRL
pushed at every step: --config.estimator.name=kf_rtrl --config.segment_length=1.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.num_steps = 1_000_000
    config.log_every = 1_000
    config.eval_every = 10_000
    config.eval_lanes = 32
    config.checkpoint_every = 10_000
    config.segment_length = 8
    config.update_every = 1

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 256})
    config.estimator = ConfigDict({"name": "ok", "rank": 8})
    config.task = ConfigDict({"name": "penn_treebank", "batch_size": 32})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 10**-3.5, "clip_norm": 1.0})
    return config
