"""Trains one network: python -m experiments.train --config=configs/copy.py --workdir=DIR."""

from __future__ import annotations

if __name__ == "__main__":
    from experiments import start

    start.begin()

from typing import Any

from kfrtrl_jax.training import command_line, config, loop


def train(invocation: command_line.Invocation) -> dict[str, Any]:
    """Runs the experiment, or continues it from its last checkpoint."""
    resolved = config.resolve(invocation.config, invocation.overrides)
    return loop.train(resolved, invocation.workdir)


if __name__ == "__main__":
    command_line.define_flags()
    command_line.run(train)
