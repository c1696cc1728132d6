"""kfrtrl reproduce --study=long --workdir=runs/reproduce_long

Where an exact window ends: a bit is recalled after 16 to 256 steps, or symbols after 10 to 80, by
an LSTM of 32 units whose forget gates start open (a memory of some 50 steps). Methods that reach
beyond the blocks of eight steps should learn what TBPTT in these blocks does not. Beside it, whether
immediate derivatives and an optimizer that divides by second moments suffice (arXiv:2603.28750). At
the scale cpu each of its nine tasks takes about half an hour of a core; RESULTS.md says what was run.
"""

from typing import Any

from ml_collections import ConfigDict

from kfrtrl_jax.training.sweep import product, seeds

BLOCK = {"segment_length": 8}
RMSPROP, SGD = "rmsprop(learning_rate=0.001)", "sgd(learning_rate=0.1)"
LARS = "optax:lars(learning_rate=0.1)"
METHODS: dict[str, dict[str, Any]] = {
    "TBPTT(1)": {"estimator": "truncated", "segment_length": 1},
    "TBPTT, blocks of 8": {"estimator": "truncated", **BLOCK},
    "TBPTT(32), blocks of 8": {"estimator": "truncated", **BLOCK, "window": 32},
    "KF-RTRL, blocks of 8": {"estimator": "kf_rtrl", **BLOCK},
    "UORO, blocks of 8": {"estimator": "uoro", **BLOCK},
    "SnAp-1, blocks of 8": {"estimator": "snap", **BLOCK},
    "8-OK, blocks of 8": {"estimator": "ok(rank=8)", **BLOCK},
    "RTRL, blocks of 8": {"estimator": "rtrl", **BLOCK},
    "TBPTT(1), RMSProp": {"estimator": "truncated", "segment_length": 1, "optimizer": RMSPROP},
    "TBPTT(1), SGD": {"estimator": "truncated", "segment_length": 1, "optimizer": SGD},
    "TBPTT(1), LARS": {"estimator": "truncated", "segment_length": 1, "optimizer": LARS},
    "KF-RTRL, blocks of 8, RMSProp": {"estimator": "kf_rtrl", **BLOCK, "optimizer": RMSPROP},
    "KF-RTRL, blocks of 8, SGD": {"estimator": "kf_rtrl", **BLOCK, "optimizer": SGD},
    "RTRL, blocks of 8, RMSProp": {"estimator": "rtrl", **BLOCK, "optimizer": RMSPROP},
    "RTRL, blocks of 8, SGD": {"estimator": "rtrl", **BLOCK, "optimizer": SGD},
}
CHAINS, DELAYS = (16, 32, 64, 128, 256), (10, 20, 40, 80)


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.num_steps = 20_000
    config.log_every = 800
    config.segment_length = 8
    config.update_every = 1

    config.cell = ConfigDict({"name": "lstm", "hidden_size": 32, "forget_bias": 4.0})
    config.estimator = ConfigDict({"name": "rtrl"})
    config.task = ConfigDict({"name": "memory_chain", "batch_size": 16})
    config.optimizer = ConfigDict({"name": "adam", "learning_rate": 1e-3, "clip_norm": 1.0})
    return config


def get_methods() -> dict[str, dict[str, Any]]:
    return METHODS


def get_sweep(scale: str = "cpu") -> list[dict[str, Any]]:
    steps, count = {"smoke": (800, 1), "cpu": (20_000, 3), "full": (100_000, 3)}[scale]
    chains, delays = (CHAINS[:1], DELAYS[:1]) if scale == "smoke" else (CHAINS, DELAYS)
    tasks = [{"task": f"memory_chain(batch_size=16, length={length})"} for length in chains]
    tasks += [{"task": f"copy_fixed(batch_size=16, symbols=3, delay={delay})"} for delay in delays]
    trials = product(tasks, list(METHODS.values()), seeds(count))
    return [{**trial, "num_steps": steps} for trial in trials]
