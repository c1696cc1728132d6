"""kfrtrl reproduce --study=ptb --workdir=runs/reproduce_ptb

Characters of the Penn Treebank as Benzing et al. (2019) trained on them: recurrent highway
network n = 256, batch 32, Adam 10^-3.5, an update at every step, influence and state reset every
100 characters. Their logs of 8-OK have a running training loss of 2.09 bits at 100,000 steps and
1.86 at 200,000, and a validation loss of 2.238 at 60,000 and 1.742 at the best over a million. On a
CPU it takes some hours, most of them for 8-OK; RESULTS.md says how far each method was run.
"""

from typing import Any

from ml_collections import ConfigDict

METHODS: dict[str, dict[str, Any]] = {
    "TBPTT(1)": {"estimator": "truncated", "segment_length": 1},
    "KF-RTRL, blocks of 8": {"estimator": "kf_rtrl", "segment_length": 8},
    "TBPTT(25)": {"estimator": "truncated", "segment_length": 1, "window": 25},
    "SnAp-1": {"estimator": "snap", "segment_length": 1},
    "SnAp-1, blocks of 8": {"estimator": "snap", "segment_length": 8},
    "UORO, blocks of 8": {"estimator": "uoro", "segment_length": 8},
    "TBPTT(5)": {"estimator": "truncated", "segment_length": 1, "window": 5},
    "8-OK, blocks of 8": {"estimator": "ok(rank=8)", "segment_length": 8},
    # In the papers' form the estimate includes the immediate derivative of each step.
    "8-OK": {"estimator": "ok(rank=8)", "segment_length": 1, "immediate": "estimated"},
    # All seeds read the same text: how much a figure depends on where. A lane is 159,425 characters.
    **{
        f"TBPTT(5), read from {start:,}": {
            "estimator": "truncated",
            "segment_length": 1,
            "window": 5,
            "task.start": start,
        }
        for start in (40_000, 80_000, 120_000)
    },
    # The usual form, with one update where the others have 25.
    "TBPTT(25), an update per 25 steps": {
        "estimator": "truncated",
        "segment_length": 25,
        "update_every": 25,
    },
}
# Which rate is best depends on the method: those that are compared by more than the papers' one.
MORE_RATES = {"10^-3": 1e-3, "10^-2.5": 10**-2.5}
AT_MORE_RATES = {
    "TBPTT(5)": ("10^-3",),
    "SnAp-1, blocks of 8": ("10^-3",),
    "KF-RTRL, blocks of 8": ("10^-3",),
    "TBPTT(25), an update per 25 steps": ("10^-3", "10^-2.5"),
}
METHODS |= {
    f"{method}, rate {rate}": {**METHODS[method], "optimizer.learning_rate": MORE_RATES[rate]}
    for method, rates in AT_MORE_RATES.items()
    for rate in rates
}


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 200_000
    config.log_every = 2_000
    config.eval_every = 10_000
    config.eval_lanes = 32
    config.update_every = 1

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 256})
    config.estimator = ConfigDict({"name": "ok", "rank": 8})
    config.task = ConfigDict({"name": "penn_treebank", "batch_size": 32})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 10**-3.5, "clip_norm": 1.0})
    return config


def get_methods() -> dict[str, dict[str, Any]]:
    return METHODS


def get_sweep(scale: str = "cpu") -> list[dict[str, Any]]:
    return [
        {**METHODS[method], "num_steps": steps, "seed": seed}
        for method, steps in steps_at(scale).items()
        for seed in range(3 if scale == "full" else 1)
    ]


def steps_at(scale: str) -> dict[str, int]:
    """The time steps of each method."""
    if scale == "smoke":
        return dict.fromkeys(METHODS, 2_000)
    if scale == "cpu":
        cheap = ("TBPTT(", "SnAp-1, blocks of 8")
        return {
            method: 200_000 if method.startswith(cheap) else 20_000 if method == "8-OK" else 60_000
            for method in METHODS
        }
    # Alike after 200,000 steps, and the best: which of them still learn?
    best = ("8-OK, blocks of 8", "TBPTT(25)", "TBPTT(5)", "SnAp-1, blocks of 8")
    usual = tuple(f"TBPTT(25), an update per 25 steps, rate {rate}" for rate in MORE_RATES)
    known = {"8-OK": 60_000, **dict.fromkeys(best + usual, 1_000_000)}
    return {method: known.get(method, 200_000) for method in METHODS}
