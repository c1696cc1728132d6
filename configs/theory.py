"""kfrtrl theory --config=configs/theory.py --workdir=runs/theory

The growth of noise with width and over time, in the regime of the theory.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    # Inputs are as long as the state, and weights have deviation (2 n + 1)^-1/2 (init_scale 0), so that
    # |a| and |D| are of the order of n^1/2 and |J| stays below 1.
    config.cell = "recurrent_highway"
    config.init_scale = 0.0
    config.estimators = ("uoro", "kf_rtrl", "average(kf_rtrl, copies=8)", "ok(rank=8)")
    config.widths = (16, 32, 64, 128, 256)
    config.num_steps = 40
    config.draws = 64
    # The long run.
    config.time_hidden_size = 32
    config.time_num_steps = 10_000
    config.time_every = 10
    config.time_draws = 16
    return config
