"""kfrtrl noise --config=configs/noise.py --workdir=runs/noise

The noise of an update's gradient against the number of steps pushed at once.

With --config.trained=WORKDIR along the stream of a trained network, in place of an untrained cell on
random inputs; --config.stream="copy(batch_size=2, initial_length=9)" takes another stream than that of
its run. WORKDIR may also be that of a sweep over widths, see configs/sweep_widths.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.cell = "recurrent_highway"
    config.init_scale = 0.3
    config.input_size = 8
    config.hidden_size = 32
    config.batch_size = 2
    # Of a finished run, or of a sweep over widths; "" for an untrained cell. The four fields above are
    # then not used.
    config.trained = ""
    config.stream = ""
    config.estimators = ("uoro", "kf_rtrl", "ok(rank=8)")
    # Each divides num_steps.
    config.segment_lengths = (1, 4, 8, 16)
    # Whether to measure the papers' form too, with the immediate derivative in the estimate.
    config.estimated = False
    config.num_steps = 64
    config.draws = 64
    return config
