"""Runs on eight devices, in the process of `test_sharding`: prints figures as JSON."""

import contextlib
import io
import json
import sys
from pathlib import Path

import jax

from kfrtrl_jax import linearization
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies.benchmarking import sharding
from kfrtrl_jax.training import loop, plots, sweep, train
from tests.training.small import compiled_once, nested, records, small

LENGTHS = {"segment_length": 2, "update_every": 1, "task.batch_size": 8, "num_steps": 40}


def layout(training):
    """Over how many devices the largest array of the influence lies."""
    leaves = jax.tree.leaves(training.group.runs(training.state).learner.influence)
    return len(max(leaves, key=lambda x: x.size).addressable_shards)


def main(home: Path) -> None:
    seen = []
    finish = loop.summarize
    train.loop.summarize = lambda training: (seen.append(layout(training)), finish(training))[1]
    plots.plot_run = plots.plot_groups = lambda *_, **__: None
    nothing = linearization.Check("float64", 0.0, {}, 0.0, 0.0, 1, 0.0)
    linearization.check = lambda *_, **__: nothing
    figures = {}
    for name, orders in {"run": (0, 2), "back": (2, 0)}.items():
        for devices, steps in zip(orders, (20, 40)):
            train.train(small({**LENGTHS, "devices": devices, "num_steps": steps}), home / name)
        figures[name] = [record["running_loss"] for record in records(home / name)]
    trials = sweep.run_sweep(nested(LENGTHS), sweep.seeds(3), home / "sweep")
    figures["sweep"] = trials[0]["running_loss"]
    refused = []
    for devices in (3, 9):
        try:
            train.train(small({**LENGTHS, "devices": devices}), home / "refused")
        except ConfigError as error:
            refused.append(str(error))
    # Kept steps, and an estimator that reads lanes one by one.
    lanes = {"estimator.name": "snap", "window": 4, "task.batch_size": 8, "checkpoint_every": 0}
    row = sharding.measure(nested(lanes), 8)
    crossing = {"gradient": row.gradient_bytes, "all": sum(row.collectives.values())}
    found = {"figures": figures, "layouts": seen, "refused": refused, "crossing": crossing}
    print(json.dumps(found))


if __name__ == "__main__":
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), compiled_once(free=["num_steps"]):
        main(Path(sys.argv[1]))
