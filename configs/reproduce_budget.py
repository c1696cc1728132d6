"""kfrtrl reproduce --study=budget --workdir=runs/reproduce_budget

What is worth its time: the same network (n = 64, batch 8) trained by each method on five tasks, with a
learning rate chosen for each from the same five, over three seeds. Methods that are cheap have more
steps, so that all can be compared at the same wall time and at the same number of time steps.

At `--scale=full` the 75 runs of SnAp-1 in blocks of 8, and those of TBPTT in blocks of 8, took half
an hour of a core. The first comes to T* = 12 on copy and recalls all symbols of copy_fixed, the second
to 10, and a fifth of them.
"""

from typing import Any

from ml_collections import ConfigDict

from kfrtrl_jax.training.sweep import grid, product, seeds

TASKS = (
    "copy(batch_size=8, initial_loss=1.0)",
    "penn_treebank(batch_size=8)",
    "adding(batch_size=8, length=20)",
    "copy_fixed(batch_size=8, symbols=3, delay=10)",
    # The literature has a delay of 17, and so has the task by default, since these runs were made.
    "mackey_glass(batch_size=8, delay=16.9)",
)
RATES = (1e-4, 10**-3.5, 1e-3, 10**-2.5, 1e-2)
BLOCKS = (4, 8, 16, 25)
# In a block of K steps the last one to K are exact; its estimator keeps what came before.
ESTIMATORS = {
    "TBPTT": "truncated",
    "KF-RTRL": "kf_rtrl",
    "8-OK": "ok(rank=8)",
    "16-OK": "ok(rank=16)",
    "UORO": "uoro",
    "SnAp-1": "snap",
    "sketched": "sketched(rank=8)",
    "KF-RTRL, shrunk": "shrink(kf_rtrl, copies=2)",
    "UORO, shrunk": "shrink(uoro, copies=2)",
}
CELLS = {"LSTM": "lstm(hidden_size=64)", "GRU": "gru(hidden_size=64)"}
# Time steps at the scale "cpu": a second of one core or more for each method.
CHEAPEST, CHEAP, USUAL, DEAR = 48_000, 16_000, 8_000, 4_000
# And at the scale "full": 96,000, and more where that is not six seconds.
FULL = 96_000
FULL_OF_CHEAP = {
    "TBPTT(1)": 384_000,
    "TBPTT, blocks of 4": 192_000,
    "TBPTT, blocks of 8": 192_000,
}


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.num_steps = USUAL
    config.log_every = 400
    config.update_every = 1
    config.segment_length = 8

    config.cell = ConfigDict({"name": "recurrent_highway", "hidden_size": 64})
    config.estimator = ConfigDict({"name": "kf_rtrl"})
    config.task = ConfigDict({"name": "copy", "batch_size": 8, "initial_loss": 1.0})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 1e-3, "clip_norm": 1.0})
    return config


def get_methods() -> dict[str, dict[str, Any]]:
    methods: dict[str, dict[str, Any]] = {
        "TBPTT(1)": {"estimator": "truncated", "segment_length": 1},
        "KF-RTRL": {"estimator": "kf_rtrl", "segment_length": 1, "immediate": "estimated"},
    }
    for length in BLOCKS:
        for name, estimator in ESTIMATORS.items():
            block = {"estimator": estimator, "segment_length": length}
            methods[f"{name}, blocks of {length}"] = block
    for cell, made in CELLS.items():
        for name in ("TBPTT, blocks of 8", "KF-RTRL, blocks of 8", "8-OK, blocks of 8"):
            methods[f"{cell}, {name}"] = {**methods[name], "cell": made}
    return methods


def get_sweep(scale: str = "cpu") -> list[dict[str, Any]]:
    tasks = [{"task": task} for task in (TASKS[2:3] if scale == "smoke" else TASKS)]
    rates = grid(**{"optimizer.learning_rate": RATES[2:3] if scale == "smoke" else RATES})
    few = seeds(1 if scale == "smoke" else 3)
    return [
        {**trial, "num_steps": steps}
        for method, steps in steps_at(scale).items()
        for trial in product([get_methods()[method]], tasks, rates, few)
    ]


def steps_at(scale: str) -> dict[str, int]:
    """The methods, those of most interest first, and the time steps of each."""
    first = (
        "TBPTT(1)",
        "TBPTT, blocks of 8",
        "KF-RTRL, blocks of 8",
        "8-OK, blocks of 8",
        "SnAp-1, blocks of 8",
        "UORO, blocks of 8",
        "KF-RTRL",
        "KF-RTRL, shrunk, blocks of 8",
    )
    if scale == "smoke":
        return dict.fromkeys(first, 800)
    methods = dict.fromkeys([*first, *get_methods()])
    if scale == "cpu":
        return {name: _about_a_second(name) for name in methods}
    return {name: FULL_OF_CHEAP.get(name, FULL) for name in methods}


def _about_a_second(method: str) -> int:
    if method == "TBPTT(1)":
        return CHEAPEST
    without_cell = method.removeprefix("LSTM, ").removeprefix("GRU, ")
    family = without_cell.partition(", blocks of")[0].partition("(")[0]
    known = {
        "TBPTT": CHEAP,
        "SnAp-1": CHEAP,
        "UORO": CHEAP,
        "UORO, shrunk": USUAL,
        "KF-RTRL": USUAL,
    }
    return known.get(family, DEAR)
