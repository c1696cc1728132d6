"""kfrtrl fidelity --config=configs/fidelity.py --workdir=runs/fidelity

The estimators to compare with exact RTRL, and the cells.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    # Bias, noise, cosine, memory and operations are measured at a small size, in double precision.
    config.input_size = 4
    config.hidden_size = 8
    config.batch_size = 2
    config.num_steps = 24
    # Numbers of steps pushed at once, each a divisor of num_steps.
    config.segment_lengths = (1, 3, 8)
    config.draws = 4096
    # Times are measured at a larger size, in single precision; 0 rounds for no timing.
    config.timing_hidden_size = 64
    config.timing_batch_size = 4
    config.timing_rounds = 5
    # Those after "alif" are difficult to linearize, see fidelity/cells.py.
    config.cells = (
        "vanilla",
        "recurrent_highway",
        "lstm",
        "gru",
        "lru",
        "alif",
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
        "pp_prop",
        "random_transport(rtrl, paths=4)",
        "reset_every(5, rtrl)",
        "truncated",
    )
    return config
