"""Text from a trained network: kfrtrl generate --workdir=DIR --prompt="The "."""

from __future__ import annotations

import sys

from absl import flags

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import command_line, faults, generation, loading

_WORKDIR = flags.DEFINE_string("workdir", "", "Of a finished run of `kfrtrl train` on text.")
_LENGTH = flags.DEFINE_integer(
    "length", 500, "Characters to write.", lower_bound=1, upper_bound=10**8
)
_PROMPT = flags.DEFINE_string("prompt", "", "What the network reads first.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Logits are divided by it.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0)


def run() -> int:
    """Loads the network and prints what it writes."""
    if not _WORKDIR.value:
        raise ConfigError("give the folder of a run by --workdir=DIR")
    command_line.require_device()
    network = loading.load(_WORKDIR.value)
    text = generation.generate(
        network,
        _LENGTH.value,
        prompt=_PROMPT.value,
        temperature=_TEMPERATURE.value,
        seed=_SEED.value,
    )
    shown = faults.printable(text, keep="\n\t") if sys.stdout.isatty() else text
    print(shown)
    return 0


def main() -> None:
    """Runs the program."""
    command_line.run_plain(run)
