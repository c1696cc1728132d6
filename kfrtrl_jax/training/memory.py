"""The memory that a run's state needs, known before anything is compiled or allocated."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import host_memory
from kfrtrl_jax._src.compositions import composed
from kfrtrl_jax._src.compositions.values import one_line
from kfrtrl_jax._src.lanes import is_key
from kfrtrl_jax._src.learning import trees
from kfrtrl_jax._src.sizes import bytes_of
from kfrtrl_jax.control import Control
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import workdir

if TYPE_CHECKING:
    from kfrtrl_jax.training.program import Experiment

# Fields of configs on which the size of a state depends.
SIZES = ("hidden_size", "num_columns", "column_size", "rank", "copies", "batch_size")
# Below this many bytes nothing is refused before the analysis, which is quick then.
_LARGE_STATE = 2**28
# From this many state variables on, the analysis takes seconds.
_LARGE_CARRY = 100_000
# The state's size is a polynomial of degree 3 in hidden_size, which has four values; one more is
# predicted to confirm that it is. They are larger than the usual ranks.
_SMALL_SIZES = (32, 64, 96, 128, 160)


def available() -> int:
    """Bytes that all devices can hold; for CPUs, the memory that the systems have available."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    own = sum(map(int, limits)) or host_memory.available()
    # Each of several processes is on a host like this one.
    return own * jax.process_count()


def needed(experiment: Experiment) -> tuple[int, int]:
    """Bytes of two copies of a run's state, the old and the new one, and the estimator's share."""
    return _of_state(lambda: experiment.init(0))


def check(experiment: Experiment, config: Any) -> None:
    """Refuses a run whose state cannot fit in memory, without compiling or allocating anything.

    Raises:
      ConfigError: with the memory needed, the memory available, and the estimator's share.
    """
    _compare(config, *needed(experiment))


def check_before(
    config: Any, task: Any, make: Callable[..., Any], init_of: Callable[..., Callable[[Any], Any]]
) -> None:
    """Refuses what cannot fit in memory before the cell's step is analysed, as that grows with it too.

    Parameters and carry are known from their shapes. The estimator's state depends on the analysis: for
    a large state it is extrapolated from the same config with smaller cells.

    Args:
      config: the resolved config.
      task: of its section.
      make: (section, **supplied) -> what the section names.
      init_of: (config, task, make) -> the function key -> state of the run.

    Raises:
      ConfigError: as `check`.
    """
    with warnings.catch_warnings():
        # JAX warns of sizes beyond its integers, which are refused here.
        warnings.simplefilter("ignore")
        shapes = jax.eval_shape(lambda: _parts(task, make))
    least = 2 * sum(map(bytes_of, shapes))
    if least > _LARGE_STATE:
        _compare(config, least)
    if sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes[2])) > _LARGE_CARRY:
        found = _extrapolated(config, task, init_of)
        if found is not None:
            _compare(config, *found.state)
            host_memory.require_memory("the analysis of the cell", found.analysis)


@contextlib.contextmanager
def exhausted() -> Iterator[None]:
    """Refuses what needs more memory than there is while it is made.

    Raises:
      ConfigError: instead of MemoryError, and of OverflowError for a size that no array can have.
    """
    try:
        yield
    except (MemoryError, OverflowError) as error:
        raise ConfigError(
            f"the config needs more memory than the {size(available())} that are available: "
            f"{one_line(error)}"
        ) from None


def size(count: int) -> str:
    """A number of bytes in words."""
    for unit, exponent in (("TiB", 40), ("GiB", 30)):
        if count >= 2 ** (exponent - 2):
            return f"{count / 2**exponent:,.2f} {unit}"
    return f"{count / 2**20:.2f} MiB"


def _parts(task: Any, make: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """The parameters, the optimizer's state and the carries of all lanes, before any step."""
    if isinstance(task, Control):
        inputs, outputs = task.environment.observation_size, task.environment.num_actions + 1
    else:
        inputs, outputs = task.input_size, task.output_size
    cell = make("cell", input_size=inputs)
    size = composed.output_size(cell, inputs, "config.cell")
    readout = make("readout", input_size=size, output_size=outputs)
    key = jax.random.key(0)
    parameters = {"cell": cell.init(key), "readout": readout.init(key)}
    optimizer = make("optimizer").init(trees.partition(parameters)[0])
    carry = jax.tree.map(_without_key, cell.initial_carry())
    lanes = jax.tree.map(lambda x: jnp.broadcast_to(x, (task.batch_size, *jnp.shape(x))), carry)
    return parameters, optimizer, lanes


class _Needed(NamedTuple):
    """Bytes.

    Attributes:
      state: as `needed` says.
      analysis: of the host, for the largest array that the analysis of the cell makes.
    """

    state: tuple[int, int]
    analysis: int


def _extrapolated(
    config: Any, task: Any, init_of: Callable[..., Callable[[Any], Any]]
) -> _Needed | None:
    """What would be needed, from smaller cells; None if it is not a polynomial of their size.

    Of several large sizes all count as the least of them.
    """
    flat = workdir.flatten(config["cell"].to_dict(), "cell")
    large = {path: value for path, value in flat.items() if _is_large(path, value)}
    if not large:
        return None
    found = []
    for small in _SMALL_SIZES:
        smaller = configs.resolve(config, dict.fromkeys(large, small))
        with host_memory.recorded() as counts:
            init = init_of(smaller, task, functools.partial(configs.make, smaller))
            state = _of_state(functools.partial(init, jax.random.key(0)))
        found.append((*state, max(counts, default=0)))
    x = Fraction(min(large.values()), _SMALL_SIZES[0]) - 1
    whole, share, analysis = (_cubic(list(values), x) for values in zip(*found))
    if whole is None or share is None:
        return None
    return _Needed((whole, share), analysis or 0)


def _is_large(path: str, value: Any) -> bool:
    named = path.rpartition(".")[2] in ("hidden_size", "num_columns")
    return named and isinstance(value, int) and value > _SMALL_SIZES[-1]


def _cubic(values: list[int], x: Fraction) -> int | None:
    """The value at x of the cubic polynomial with these values at 0, 1, ..; None if there is none."""
    total, binomial = Fraction(0), Fraction(1)
    for j in range(4):
        total += values[0] * binomial
        binomial *= (x - j) / (j + 1)
        values = [b - a for a, b in itertools.pairwise(values)]
    return None if any(values) else int(total)


def _of_state(init: Callable[[], Any]) -> tuple[int, int]:
    state = jax.eval_shape(lambda: jax.tree.map(_without_key, init()))
    return 2 * bytes_of(state), 2 * bytes_of(state.learner.influence)


def _compare(config: Any, bytes_needed: int, share: int = 0) -> None:
    """Refuses a config whose state needs more than is available."""
    if bytes_needed <= (most := available()):
        return
    flat = workdir.flatten(config.to_dict())
    sizes = [path for path in flat if path.rpartition(".")[2] in SIZES]
    if share:
        reason = (
            f"; estimator {configs.shown(config, 'estimator')} takes {size(share)} of it, so choose "
            "another, or smaller fields such as"
        )
    else:
        reason = " already without its estimator; choose smaller fields such as"
    least = "" if share else "at least "
    raise ConfigError(
        f"the run's state needs {least}{size(bytes_needed)} and {size(most)} are available"
        f"{reason} {', '.join(sizes)}"
    )


def _without_key(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if is_key(leaf) else leaf
