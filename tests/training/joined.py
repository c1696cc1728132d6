"""One of two processes with a run in common, for `test_processes`: prints what came of it as JSON."""

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path

from kfrtrl_jax import linearization
from kfrtrl_jax.errors import ConfigError, WorkdirError
from kfrtrl_jax.training import loop, plots, processes, train
from kfrtrl_jax.training.signals import Interrupted
from tests.training.small import compiled_once, small

CHANGES = {"task.batch_size": 8, "num_steps": 40}


def main(home: Path, coordinator: str, number: int) -> dict[str, str]:
    processes.join(coordinator, 2, number)
    plots.plot_run = lambda *_, **__: None
    nothing = linearization.Check("float64", 0.0, {}, 0.0, 0.0, 1, 0.0)
    linearization.check = lambda *_, **__: nothing
    found = {}
    advance = loop.Training._advance

    def stopped(self, chunk):
        advance(self, chunk)
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    loop.Training._advance = stopped
    try:
        train.train(small(CHANGES), home / "two")
    except Interrupted as stop:
        found["stopped"] = str(stop).split(",")[0]
    loop.Training._advance = advance
    train.train(small(CHANGES), home / "one")
    for name, changes in {
        "different": {"seed": number},
        "workdir": {"seed": 5},
        "lanes": {"task.batch_size": 3},
    }.items():
        try:
            train.train(small({**CHANGES, **changes}), home / "one")
        except (ConfigError, WorkdirError) as error:
            found[name] = str(error)
    processes.part()
    return found


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()), compiled_once():
        found = main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    print(json.dumps(found))
