"""Trains one network: kfrtrl train --config=configs/copy.py --workdir=DIR."""

from __future__ import annotations

from typing import Any

from kfrtrl_jax.training import command_line, config, dry_run, processes, train


def run(invocation: command_line.Invocation) -> dict[str, Any]:
    """Runs the experiment, or continues it from its last checkpoint; or shows what it would be."""
    resolved = config.resolve(invocation.config, invocation.overrides)
    if invocation.dry_run:
        described = dry_run.describe(resolved)
        if processes.is_first():
            print(described)
        return {}
    return train.train(resolved, invocation.workdir, invocation.wandb)


def main() -> None:
    """Runs the program."""
    command_line.define_flags(trains=True)
    command_line.run(run, joins=True)
