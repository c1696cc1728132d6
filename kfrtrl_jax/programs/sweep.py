"""Runs a sweep: kfrtrl sweep --config=configs/sweep_copy.py --workdir=DIR."""

from __future__ import annotations

from typing import Any

from absl import flags

from kfrtrl_jax.training import command_line, config, engines, sweep

_ENGINE = flags.DEFINE_string(
    "engine", "local", "where groups of trials run: local, ray or slurm, with options in brackets"
)
_GROUP_SIZE = flags.DEFINE_integer(
    "group_size",
    0,
    "the most trials side by side as one program; 0: what memory holds",
    lower_bound=0,
)


def run(invocation: command_line.Invocation) -> list[dict[str, Any]]:
    """Runs those trials of the config file's get_sweep() that have no result yet, or shows them."""
    trials = config.call(invocation.path, "get_sweep")
    if invocation.dry_run:
        print(
            sweep.describe(
                invocation.config, trials, invocation.overrides, group_size=_GROUP_SIZE.value
            )
        )
        return []
    engine = engines.make(_ENGINE.value)
    return sweep.run_sweep(
        invocation.config,
        trials,
        invocation.workdir,
        invocation.overrides,
        engine,
        group_size=_GROUP_SIZE.value,
        wandb=invocation.wandb,
    )


def main() -> None:
    """Runs the program."""
    command_line.define_flags(trains=True)
    command_line.run(run)
