"""Which estimators are compared with exact RTRL, on which cells.

python -m experiments.fidelity --config=configs/fidelity.py --workdir=runs/fidelity
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.input_size = 4
    config.hidden_size = 8
    config.batch_size = 2
    config.num_steps = 20
    config.draws = 4096
    config.cells = ("vanilla", "recurrent_highway", "lstm", "gru")
    # The names of factories, with the arguments that have no default.
    config.estimators = (
        "rtrl", "uoro", "kf_rtrl", "ok(rank=4)", "ktp(rank=4)", "forward_gradient",
        "snap", "e_prop", "rflo", "truncated",
    )  # fmt: skip
    return config
