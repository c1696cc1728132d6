"""Noise against width and over time: kfrtrl theory --config=configs/theory.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kfrtrl_jax.base import Cell
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies.fidelity import named, plots, settings, theory
from kfrtrl_jax.training import command_line, workdir
from kfrtrl_jax.training import config as configs


def run(invocation: command_line.Invocation) -> None:
    """Writes theory.json, theory.md and the pictures, and prints the tables."""
    given = settings.checked(invocation, configs.call("theory", "get_config"))
    make_cell = settings.scaled_cell(given["cell"])
    _check(given)

    def make(width: int) -> Cell:
        sizes = {"input_size": width, "hidden_size": width}
        return make_cell(**sizes, init_scale=given["init_scale"])

    folder = invocation.workdir
    with workdir.hold(folder):
        workdir.claim(folder, given)
        result = _measured(given, make)
        tables = theory.markdown(result)
        workdir.write_json(folder / "theory.json", theory.as_dict(result))
        workdir.write_text(folder / "theory.md", tables)
        plots.plot_theory(result, folder)
    print(tables, end="")


def _check(given: Mapping[str, Any]) -> None:
    """Refuses widths that make no line, and a length that is not measured to its end.

    Raises:
      ConfigError: naming the field.
    """
    if len(set(given["widths"])) < 3:
        raise ConfigError(
            f"config.widths must be three or more different ones, got {given['widths']}"
        )
    if given["time_num_steps"] % given["time_every"]:
        raise ConfigError(
            f"config.time_num_steps must be a multiple of time_every ({given['time_every']}), got "
            f"{given['time_num_steps']}"
        )


def _measured(given: Mapping[str, Any], make: Callable[[int], Cell]) -> theory.Theory:
    """The noise against width and over time, with its fits."""
    noisy = [named(text) for text in given["estimators"]]
    widths, regimes = theory.against_width(
        make,
        noisy,
        given["widths"],
        steps=given["num_steps"],
        draws=given["draws"],
        seed=given["seed"],
    )
    times, curves = theory.over_time(
        make,
        noisy,
        given["time_hidden_size"],
        steps=given["time_num_steps"],
        every=given["time_every"],
        draws=given["time_draws"],
        seed=given["seed"],
    )
    scale = given["init_scale"] or "(2 n + 1)^-1/2"
    return theory.Theory(
        cell=f"{given['cell']} cell with n inputs and weights of deviation {scale}",
        widths=widths,
        regimes=regimes,
        fits={one.name: theory.fit(widths, one.name) for one in noisy},
        time_width=given["time_hidden_size"],
        times=times,
        over_time=curves,
        drifts={name: theory.drift(times, curve) for name, curve in curves.items()},
    )


def main() -> None:
    """Runs the program."""
    command_line.define_flags()
    command_line.run(run)
