"""Speeds as ratios: a whole training step against a measured floor, in one process.

Absolute times say little on a shared machine. Each row alternates runs of the thing measured with runs
of its floor and reports the median of their ratios, with the smallest and the largest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax.base import Structure
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import program as programs


class Case(NamedTuple):
    """What a row measures: a training step on the copy task.

    Attributes:
      cell: its name in the registry.
      estimator: its name in the registry.
      n: the cell's hidden size.
      batch: lanes.
      floor: another cell, whose training step is the floor; "" for the bare products J A.
    """

    cell: str
    estimator: str
    n: int
    batch: int
    floor: str = ""


class Row(NamedTuple):
    """One measurement; times are medians of seconds for one time step.

    Attributes:
      suite: the suite's name.
      name: cell and estimator.
      n: the cell's hidden size.
      batch: lanes.
      ratio: median over rounds of seconds over floor_seconds.
      ratio_min: the smallest.
      ratio_max: the largest.
      floor_seconds: of its floor.
      seconds: of the whole training step.
      samples: every round's (seconds, floor seconds).
    """

    suite: str
    name: str
    n: int
    batch: int
    ratio: float
    ratio_min: float
    ratio_max: float
    floor_seconds: float
    seconds: float
    samples: list[tuple[float, float]]


STEP_SUITE = (
    Case("recurrent_highway", "kf_rtrl", 128, 16),
    Case("recurrent_highway", "kf_rtrl", 256, 32),
    Case("lstm", "kf_rtrl", 128, 16),
    Case("gru", "kf_rtrl", 128, 16),
    Case("vanilla", "kf_rtrl", 128, 16),
)
# An unmodified cell of Flax; its floor is our own cell of the same size.
FLAX_SUITE = (
    Case("flax_optimized_lstm", "kf_rtrl", 128, 16, floor="lstm"),
    Case("flax_gru", "kf_rtrl", 128, 16, floor="gru"),
)

# The batched product J A in its equivalent layouts; the floor is the fastest on the device at hand.
_PRODUCTS: tuple[tuple[str, str], ...] = (
    ("bij,bjk->bik", "J A"),
    ("bij,bkj->bki", "A^T J^T"),
)


def measure(case: Case, config: Any, *, suite: str, rounds: int = 9, steps: int = 50) -> Row:
    """Measures a case against its floor.

    Args:
      case: what to measure.
      config: a config of the copy task to start from.
      suite: the suite's name, for the row.
      rounds: how often either is run.
      steps: time steps a run.
    """
    run, structure = _training_steps(case, case.cell, config, steps)
    if case.floor:
        floor, _ = _training_steps(case, case.floor, config, steps)
    else:
        floor = _product_floor(structure, steps)
    samples = []
    for _ in range(rounds):
        floor_seconds = _seconds(floor) / steps
        samples.append((_seconds(run) / steps, floor_seconds))
    ratios = sorted(seconds / floor_seconds for seconds, floor_seconds in samples)
    return Row(
        suite,
        f"{case.cell} {case.estimator}",
        case.n,
        case.batch,
        _median(ratios),
        ratios[0],
        ratios[-1],
        _median([floor_seconds for _, floor_seconds in samples]),
        _median([seconds for seconds, _ in samples]),
        samples,
    )


def _training_steps(
    case: Case, cell: str, config: Any, steps: int
) -> tuple[Callable[[], Any], Structure]:
    """A function that goes on training for some time steps each time it is called."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.cell = {"name": cell, "hidden_size": case.n}
        config.estimator.name, config.task.batch_size = case.estimator, case.batch
        config.num_steps = config.log_every = config.checkpoint_every = steps
        config.eval_every = 0
    program = programs.build(configs.resolve(config))
    chunk = jax.jit(program.run_chunk, donate_argnums=0)
    state = [jax.jit(program.init)(0)]

    def run() -> Any:
        state[0], metrics = chunk(state[0])
        return metrics

    jax.block_until_ready(run())
    return run, program.structure


def _product_floor(structure: Structure, steps: int) -> Callable[[], Any]:
    """`steps` batched products J A for every site, in the fastest layout."""
    b, n = structure.batch_size, structure.state_size
    key = jax.random.key(0)
    # A Jacobian that shrinks keeps A in the normal range of floats, where products are fast.
    jacobian = jax.random.normal(key, (b, n, n)) * (0.8 / n**0.5)
    candidates = []
    for equation, _ in _PRODUCTS:
        transposed = equation.endswith("bki")
        factors = [
            jax.random.normal(key, (b, s.output_size, n) if transposed else (b, n, s.output_size))
            for s in structure.sites
        ]

        def products(jacobian: Any, factors: Any, equation: str = equation) -> Any:
            def body(factors: Any, _: None) -> tuple[Any, None]:
                return [jnp.einsum(equation, jacobian, a) for a in factors], None

            return jax.lax.scan(body, factors, length=steps)[0]

        run = jax.jit(products).lower(jacobian, factors).compile()
        candidates.append(lambda run=run, factors=factors: run(jacobian, factors))
    times = [min(_seconds(c) for _ in range(3)) for c in candidates]
    return candidates[times.index(min(times))]


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
