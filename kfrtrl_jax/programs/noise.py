"""Noise against segment length: kfrtrl noise --config=configs/noise.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies.fidelity import gradient_noise, named, noise_tables, settings
from kfrtrl_jax.training import command_line, made_with, trials, workdir
from kfrtrl_jax.training import config as configs


def run(invocation: command_line.Invocation) -> None:
    """Writes noise.json and noise.md, and prints the table."""
    given = settings.checked(invocation, configs.call("noise", "get_config"))
    settings.check_divides(given["segment_lengths"], given["num_steps"])
    networks = _trained(given) if given["trained"] else [_untrained(given)]
    forms = [gradient_noise.Form(length) for length in given["segment_lengths"]]
    forms += [gradient_noise.Form(1, "estimated")] * given["estimated"]
    folder = invocation.workdir
    with workdir.hold(folder):
        workdir.claim(folder, given)
        rows = [
            row
            for network in networks
            for row in gradient_noise.measure_noise(
                network,
                {text: named(text).estimator for text in given["estimators"]},
                forms,
                draws=given["draws"],
                seed=given["seed"],
            )
        ]
        table = noise_tables.markdown(rows)
        record = {
            "config": given,
            "made_with": made_with.numbers({}),
            "rows": [row._asdict() for row in rows],
        }
        workdir.write_json(folder / "noise.json", record)
        workdir.write_text(folder / "noise.md", table)
    print(table, end="")


def _untrained(given: dict[str, Any]) -> gradient_noise.Setting:
    make = settings.scaled_cell(given["cell"])
    cell = make(
        input_size=given["input_size"],
        hidden_size=given["hidden_size"],
        init_scale=given["init_scale"],
    )
    return gradient_noise.untrained(
        cell,
        input_size=given["input_size"],
        batch_size=given["batch_size"],
        steps=given["num_steps"],
        seed=given["seed"],
    )


def _trained(given: dict[str, Any]) -> list[gradient_noise.Setting]:
    networks = [
        gradient_noise.trained(
            folder, given["stream"], steps=given["num_steps"], seed=given["seed"]
        )
        for folder in trials.finished_folders(Path(given["trained"]), command_line.warn)
    ]
    _check_widths(given["trained"], [gradient_noise.width(network) for network in networks])
    return networks


def _check_widths(folder: str, widths: Sequence[int]) -> None:
    """Refuses networks that a table against width could not tell apart."""
    if len(set(widths)) < len(widths):
        raise ConfigError(
            f"config.trained: the networks of a sweep must differ in their width, those of {folder} "
            f"have n = {', '.join(map(str, widths))}; a single one is {folder}/trials/NUMBER"
        )


def main() -> None:
    """Runs the program."""
    command_line.define_flags()
    command_line.run(run)
