"""The memory that a run's state needs, known before anything is compiled or allocated."""

from __future__ import annotations

import math
from typing import Any

import jax
import psutil

from kfrtrl_jax._src.lanes import is_key
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import workdir
from kfrtrl_jax.training.program import Experiment

# Fields of configs on which the size of a state depends.
SIZES = ("hidden_size", "rank", "copies", "batch_size")


def available() -> int:
    """Bytes that the first device can hold; for a CPU, the memory that the system has available."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit", 0)) or psutil.virtual_memory().available


def needed(experiment: Experiment) -> tuple[int, int]:
    """Bytes of two copies of a run's state, the old and the new one, and the estimator's share."""
    state = jax.eval_shape(lambda: jax.tree.map(_without_key, experiment.init(0)))
    return 2 * _bytes(state), 2 * _bytes(state.learner.influence)


def check(experiment: Experiment, config: Any) -> None:
    """Refuses a run whose state cannot fit in memory, without compiling or allocating anything.

    Raises:
      ConfigError: with the memory needed, the memory available, and the estimator's share.
    """
    (bytes_needed, share), most = needed(experiment), available()
    if bytes_needed > most:
        flat = workdir.flatten(config.to_dict())
        sizes = [path for path in flat if path.rpartition(".")[2] in SIZES]
        raise ConfigError(
            f"the run's state needs {_size(bytes_needed)} and {_size(most)} are available; estimator "
            f"{configs.shown(config, 'estimator')} takes {_size(share)} of it, so choose another, or "
            f"smaller fields such as {', '.join(sizes)}"
        )


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"


def _without_key(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if is_key(leaf) else leaf
