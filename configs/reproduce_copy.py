"""kfrtrl reproduce --study=copy --workdir=runs/reproduce_copy

String memorization as Benzing et al. (2019) trained it: recurrent highway network n = 128, batch 16,
Adam 10^-3.5, an update at every step, the curriculum's running loss begun at 1 bit. Their logs have
T* = 4 at 10,000 steps with 16-OK, 8 to 10 at 30,000, 15 to 17 at 100,000 and 19 to 21 at 200,000. On
one core 16-OK in their form takes about 70 minutes per 100,000 steps, KF-RTRL three.
"""

from typing import Any

from ml_collections import ConfigDict

# In the papers' form the estimate includes the immediate derivative of each step.
PAPER = {"segment_length": 1, "immediate": "estimated"}
SMALL = {"cell.hidden_size": 32}
METHODS: dict[str, dict[str, Any]] = {
    "KF-RTRL": {"estimator": "kf_rtrl", **PAPER},
    "16-OK": {"estimator": "ok(rank=16)", **PAPER},
    "UORO": {"estimator": "uoro", **PAPER},
    "KF-RTRL, blocks of 8": {"estimator": "kf_rtrl", "segment_length": 8},
    "SnAp-1, blocks of 8": {"estimator": "snap", "segment_length": 8},
    "TBPTT(25)": {"estimator": "truncated", "segment_length": 1, "window": 25},
    "16-OK, blocks of 8": {"estimator": "ok(rank=16)", "segment_length": 8},
    "TBPTT(1)": {"estimator": "truncated", "segment_length": 1},
    "TBPTT(5)": {"estimator": "truncated", "segment_length": 1, "window": 5},
    "TBPTT(25), an update per 25 steps": {
        "estimator": "truncated",
        "segment_length": 25,
        "update_every": 25,
    },
    "SnAp-1": {"estimator": "snap", "segment_length": 1},
    "TBPTT(50)": {"estimator": "truncated", "segment_length": 1, "window": 50},
    # Small enough for exact RTRL.
    "RTRL, n = 32": {"estimator": "rtrl", "segment_length": 8, **SMALL},
    "KF-RTRL, n = 32": {"estimator": "kf_rtrl", **PAPER, **SMALL},
    "16-OK, n = 32": {"estimator": "ok(rank=16)", **PAPER, **SMALL},
    "UORO, n = 32": {"estimator": "uoro", **PAPER, **SMALL},
    "AVG of 16": {"estimator": "average(kf_rtrl, copies=16)", **PAPER},
    "16-KTP": {"estimator": "ktp(rank=16)", **PAPER},
    "16-KTP, sampled": {"estimator": "ktp(rank=16, reduction='sampling')", **PAPER},
    # As in the logs of 16-KTP; those of 16-OK have 16 lanes.
    "16-KTP, batch 256": {"estimator": "ktp(rank=16)", **PAPER, "task.batch_size": 256},
}


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 100_000
    config.log_every = 2_000
    config.update_every = 1

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 128})
    config.estimator = ConfigDict({"name": "kf_rtrl"})
    config.task = ConfigDict({"name": "copy", "batch_size": 16, "initial_loss": 1.0})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 10**-3.5, "clip_norm": 1.0})
    return config


def get_methods() -> dict[str, dict[str, Any]]:
    return METHODS


def get_sweep(scale: str = "cpu") -> list[dict[str, Any]]:
    return [
        {**METHODS[method], "num_steps": steps, "seed": seed}
        for method, (steps, count) in runs_at(scale).items()
        for seed in range(count)
    ]


def runs_at(scale: str) -> dict[str, tuple[int, int]]:
    """The time steps and the number of seeds of each method."""
    if scale == "smoke":
        return dict.fromkeys(METHODS, (2_000, 1))
    if scale == "cpu":
        slow = {
            "16-OK": 100_000,
            "16-OK, blocks of 8": 100_000,
            "AVG of 16": 20_000,
            "16-KTP": 20_000,
            "16-KTP, batch 256": 100_000,
        }
        return {
            method: (slow.get(method, 200_000), 1 if method in slow else 3) for method in METHODS
        }
    short = dict.fromkeys(
        ("16-OK", "AVG of 16", "16-KTP", "16-KTP, sampled", "16-KTP, batch 256"), 200_000
    )
    return {method: (short.get(method, 1_000_000), 3) for method in METHODS}
