"""Every estimator against exact RTRL: kfrtrl fidelity --config=configs/fidelity.py."""

from __future__ import annotations

import math

import jax

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies import fidelity
from kfrtrl_jax.studies.fidelity import plots, settings
from kfrtrl_jax.training import command_line, workdir
from kfrtrl_jax.training import config as configs


def run(invocation: command_line.Invocation) -> None:
    """Writes fidelity.json, fidelity.md and the pictures, and prints the table.

    Exits with code 1 if an estimator that claims to be unbiased is not.
    """
    given = settings.checked(invocation, configs.call("fidelity", "get_config"))
    for name in given["cells"]:
        if name not in fidelity.CERTIFIED_CELLS:
            known = ", ".join(fidelity.CERTIFIED_CELLS)
            raise ConfigError(f"there is no cell {name!r}; one of {known}")
    named = [fidelity.named(text) for text in given["estimators"]]
    size = fidelity.Size(
        given["input_size"], given["hidden_size"], given["batch_size"], given["num_steps"]
    )
    settings.check_divides(given["segment_lengths"], given["num_steps"])
    timed = fidelity.Size(
        given["timing_hidden_size"],
        given["timing_hidden_size"],
        given["timing_batch_size"],
        math.lcm(*given["segment_lengths"]),
    )
    # A verdict on bias needs sums more accurate than the errors it is to detect.
    jax.config.update("jax_enable_x64", True)
    folder = invocation.workdir
    with workdir.hold(folder):
        workdir.claim(folder, given)
        certificate = fidelity.certify(
            {name: fidelity.CERTIFIED_CELLS[name] for name in given["cells"]},
            named,
            size,
            segment_lengths=given["segment_lengths"],
            draws=given["draws"],
            seed=given["seed"],
            timed=timed if given["timing_rounds"] else None,
            rounds=given["timing_rounds"],
        )
        table = fidelity.markdown(certificate)
        workdir.write_json(folder / "fidelity.json", [row._asdict() for row in certificate.rows])
        workdir.write_text(folder / "fidelity.md", table)
        print(table, end="", flush=True)
        plots.plot_certificate(certificate.rows, folder)
    if wrong := fidelity.violations(certificate):
        names = "; ".join(
            f"{row.estimator} on {row.cell}, K = {row.segment_length}" for row in wrong
        )
        raise SystemExit(
            f"error: more than {fidelity.LIMIT:g} standard errors from the exact influence although "
            f"claimed unbiased: {names}"
        )


def main() -> None:
    """Runs the program."""
    command_line.define_flags()
    command_line.run(run)
