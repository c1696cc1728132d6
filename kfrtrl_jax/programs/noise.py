"""Noise against segment length: kfrtrl noise --config=configs/noise.py."""

from __future__ import annotations

from typing import Any

from kfrtrl_jax.studies.fidelity import gradient_noise, named, settings
from kfrtrl_jax.training import command_line, made_with, workdir
from kfrtrl_jax.training import config as configs


def run(invocation: command_line.Invocation) -> None:
    """Writes noise.json and noise.md, and prints the table."""
    given = settings.checked(invocation, configs.call("noise", "get_config"))
    settings.check_divides(given["segment_lengths"], given["num_steps"])
    setting = _trained(given) if given["trained"] else _untrained(given)
    forms = [gradient_noise.Form(length) for length in given["segment_lengths"]]
    forms += [gradient_noise.Form(1, "estimated")] * given["estimated"]
    folder = invocation.workdir
    with workdir.hold(folder):
        workdir.claim(folder, given)
        rows = gradient_noise.measure_noise(
            setting,
            {text: named(text).estimator for text in given["estimators"]},
            forms,
            draws=given["draws"],
            seed=given["seed"],
        )
        table = gradient_noise.markdown(rows)
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


def _trained(given: dict[str, Any]) -> gradient_noise.Setting:
    return gradient_noise.trained(
        given["trained"], given["stream"], steps=given["num_steps"], seed=given["seed"]
    )


def main() -> None:
    """Runs the program."""
    command_line.define_flags()
    command_line.run(run)
