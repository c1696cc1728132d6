"""Which estimators are compared with exact RTRL, on which cells.

python -m experiments.fidelity --config=configs/fidelity.py --workdir=runs/fidelity
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    # Bias, noise, cosine, memory and operations: at a small size, in double precision.
    config.input_size = 4
    config.hidden_size = 8
    config.batch_size = 2
    config.num_steps = 24
    # How many steps are pushed at once, each a divisor of num_steps.
    config.segment_lengths = (1, 3, 8)
    config.draws = 4096
    # Times: at a larger one, in single precision; no rounds for none.
    config.timing_hidden_size = 64
    config.timing_batch_size = 4
    config.timing_rounds = 5
    # Those after "lru" are of kinds on which a linearization is easily wrong: fidelity/cells.py.
    config.cells = (
        "vanilla",
        "recurrent_highway",
        "lstm",
        "gru",
        "lru",
        "spiking",
        "complex_lru",
        "output_skip",
        "ode",
    )
    # Names of factories, with arguments: "ok(rank=4)", "average(kf_rtrl, copies=4)".
    config.estimators = (
        "rtrl",
        "diagonal_rtrl",
        "kf_rtrl",
        "reverse_kf_rtrl",
        "average(kf_rtrl, copies=4)",
        "antithetic(kf_rtrl, copies=4)",
        "control_variate(kf_rtrl)",
        "ok(rank=4)",
        "ktp(rank=4)",
        "uoro",
        "uoro(noise='pre_activation')",
        "nobacktrack",
        "forward_gradient",
        "random_resets(0.05, rtrl)",
        "snap",
        "snap(order=2)",
        "sketched(rank=4)",
        "e_prop",
        "rflo",
        "kernl",
        "reset_every(5, rtrl)",
        "truncated",
    )
    return config
