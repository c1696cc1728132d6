"""Fetches the Penn Treebank: kfrtrl data --out=DIR."""

from __future__ import annotations

import sys

from absl import flags

from kfrtrl_jax.errors import ConfigError, DataError
from kfrtrl_jax.tasks import download
from kfrtrl_jax.training import command_line

_OUT = flags.DEFINE_string("out", None, "Folder for the three files.")
_URL = flags.DEFINE_string("url", download.PENN_TREEBANK_URL, "Where they are fetched from.")
_FORCE = flags.DEFINE_bool("force", False, "Replace existing files that have other content.")


def run() -> int:
    """Fetches the missing files; returns 2 if any of them could not be fetched."""
    if not _OUT.value:
        raise ConfigError("give the folder by --out=DIR")
    code = 0
    for name in download.PENN_TREEBANK_SHA256:
        try:
            new = download.fetch(_OUT.value, name, url=_URL.value, force=_FORCE.value)
            print(f"{name}: {'fetched' if new else 'already there'}")
        except DataError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            code = 2
    return code


def main() -> None:
    """Runs the program."""
    command_line.run_plain(run)
