"""Every estimator against exact RTRL: python -m experiments.fidelity --config=configs/fidelity.py."""

from __future__ import annotations

import re
from typing import Any

import jax
from ml_collections import ConfigDict

from configs import fidelity as default
from kfrtrl_jax import fidelity
from kfrtrl_jax.base import InfluenceEstimator
from kfrtrl_jax.cells import CELLS
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.estimators import ESTIMATORS
from kfrtrl_jax.training import command_line, workdir


def run(invocation: command_line.Invocation) -> None:
    """Writes fidelity.json and fidelity.md and prints the table."""
    settings = _checked(invocation.config)
    # A verdict on bias needs sums that are more exact than the errors it looks for.
    jax.config.update("jax_enable_x64", True)
    with workdir.hold(invocation.workdir):
        workdir.claim(invocation.workdir, settings)
        rows = fidelity.certify(
            {
                name: CELLS[name](
                    input_size=settings["input_size"], hidden_size=settings["hidden_size"]
                )
                for name in settings["cells"]
            },
            {name: estimator(name) for name in settings["estimators"]},
            input_size=settings["input_size"],
            batch_size=settings["batch_size"],
            steps=settings["num_steps"],
            draws=settings["draws"],
            seed=settings["seed"],
        )
        table = fidelity.markdown(rows)
        workdir.write_json(invocation.workdir / "fidelity.json", [row._asdict() for row in rows])
        workdir.write_text(invocation.workdir / "fidelity.md", table)
    print(table, end="")


def estimator(name: str) -> InfluenceEstimator:
    """An estimator from its name with arguments, such as "ok(rank=8)".

    Raises:
      ConfigError: if there is none of that name, or it takes no such arguments.
    """
    match = re.fullmatch(r"(\w+)(?:\((\w+=\d+(?:, *\w+=\d+)*)\))?", name)
    if not match or match[1] not in ESTIMATORS:
        raise ConfigError(f"there is no estimator {name!r}; one of {', '.join(ESTIMATORS)}")
    given = dict(pair.split("=") for pair in re.split(", *", match[2])) if match[2] else {}
    try:
        return ESTIMATORS[match[1]](**{key: int(value) for key, value in given.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"estimator {name!r}: {error}") from None


def _checked(given: ConfigDict) -> dict[str, Any]:
    defaults = default.get_config()
    settings = given.to_dict()
    for key, value in settings.items():
        if key not in defaults:
            raise ConfigError(f"config.{key} is not a field; one of {', '.join(sorted(defaults))}")
        if not isinstance(value, type(defaults[key])) or (isinstance(value, int) and value < 0):
            raise ConfigError(f"config.{key} must be like {defaults[key]!r}, got {value!r}")
    for name in settings["cells"]:
        if name not in CELLS:
            raise ConfigError(f"there is no cell {name!r}; one of {', '.join(CELLS)}")
    return settings


if __name__ == "__main__":
    command_line.define_flags(sections=())
    command_line.run(run)
