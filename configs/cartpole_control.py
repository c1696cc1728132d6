"""kfrtrl train --config=configs/cartpole_control.py --workdir=runs/cartpole

Balancing a pole whose velocities are hidden, so that they must be inferred from the past.

Return 258 over the last steps after 200,000 steps, 33 s of one core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.num_steps = 200_000
    config.log_every = 1_000
    config.checkpoint_every = 20_000

    config.cell = ConfigDict({"name": "rtu", "hidden_size": 32})
    config.estimator = ConfigDict({"name": "diagonal_rtrl"})
    config.task = ConfigDict(
        {
            "name": "control",
            "environment": "CartPole-v1",
            "observed": (0, 2),
            "batch_size": 16,
            "trace_decay": 0.95,
        }
    )
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 5e-4, "clip_norm": 1.0})
    return config
