"""kfrtrl train --config=configs/ptb.py --workdir=DIR

Character-level Penn Treebank with SnAp-1 in blocks of 8 steps, an update at every step (n = 256, batch
32, as published).

The folder with ptb.train.txt and its companions: KFRTRL_DATA_DIR or --config.task.data_dir=DIR.
TBPTT with an update at every step: --config.estimator=truncated. 8-OK as published:
--config.estimator="ok(rank=8)" --config.segment_length=1 --config.immediate=estimated; KF-RTRL: the
same with --config.estimator=kf_rtrl.

A test loss of 1.862 bits per character after 200,000 steps, 5.4 ms a step of one core: a run of the
study `ptb`, see RESULTS.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.num_steps = 200_000
    config.log_every = 1_000
    config.eval_every = 10_000
    config.eval_lanes = 32
    config.checkpoint_every = 10_000
    config.segment_length = 8
    config.update_every = 1

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 256})
    config.estimator = ConfigDict({"name": "snap"})
    config.task = ConfigDict({"name": "penn_treebank", "batch_size": 32})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 10**-3.5, "clip_norm": 1.0})
    return config
