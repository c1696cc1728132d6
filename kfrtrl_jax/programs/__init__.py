"""The programs: each module here is one, and `main` in it runs it (`kfrtrl NAME`).

This file imports only the standard library, as `start` and `console` do: a program is ready for signals
before the imports that take seconds.
"""

from __future__ import annotations

from typing import NamedTuple


class Program(NamedTuple):
    """What is known of a program before it is imported.

    Attributes:
      summary: in one line.
      extras: of the distribution, which it needs beside the library.
    """

    summary: str
    extras: tuple[str, ...] = ("train",)


PROGRAMS = {
    "train": Program("Trains one network, or continues to."),
    "sweep": Program("Trains many networks: a sweep of settings and seeds."),
    "compare": Program("Pictures and tables of runs and sweeps side by side."),
    "tabulate": Program("Tables of a sweep."),
    "generate": Program("Text from a trained network.", ()),
    "reproduce": Program("Makes the papers' training runs again."),
    "report": Program(
        "Renders what these have come to: RESULTS.md and a page.", ("train", "report")
    ),
    "fidelity": Program("Every estimator against exact RTRL: bias, noise, cosine and cost."),
    "noise": Program("The noise of gradients against the segment length.", ()),
    "theory": Program("The noise of estimators against width and over time."),
    "benchmark": Program("Speeds as ratios to measured floors, memory and start-up."),
    "sharding": Program("What several devices compute and send, by compiling for them.", ()),
    "plan": Program("What a run on a cluster would need.", ()),
    "data": Program("Fetches the Penn Treebank.", ()),
}

# The modules by which an extra is known to be installed.
MODULES = {"train": ("matplotlib", "psutil", "tensorboardX"), "report": ("plotly",)}
