"""kfrtrl train --config=configs/sequential_mnist.py --workdir=DIR

MNIST row by row, with SnAp-1 and two updates per image.

The folder of the four files: KFRTRL_MNIST_DIR or --config.task.data_dir=DIR. Pixel by pixel:
--config.task.order=pixels --config.log_every=7840 --config.num_steps=7840000
--config.eval_every=784000 --config.checkpoint_every=784000; in another order of the pixels:
--config.task.permuted=True.

No result is recorded: nothing of this project has the images.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.num_steps = 280_000
    config.log_every = 2_800
    config.eval_every = 28_000
    config.eval_lanes = 100
    config.checkpoint_every = 28_000
    config.segment_length = 14
    config.update_every = 14

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 64})
    config.estimator = ConfigDict({"name": "snap"})
    config.task = ConfigDict({"name": "sequential_mnist", "batch_size": 16, "order": "rows"})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 1e-3, "clip_norm": 1.0})
    return config
