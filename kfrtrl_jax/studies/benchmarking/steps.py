"""Whole training steps (task, cell, estimator, readout, optimizer) against the work they must do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import xla
from kfrtrl_jax._src.matrices import Banded, BlockColumns
from kfrtrl_jax._src.tasks.copy import VOCABULARY_SIZE
from kfrtrl_jax.base import Linearization
from kfrtrl_jax.cells import CELLS, on_tokens
from kfrtrl_jax.linearization import make_linearizer
from kfrtrl_jax.studies.benchmarking import floors, timing
from kfrtrl_jax.studies.benchmarking.flax_baseline import flax_training
from kfrtrl_jax.studies.benchmarking.timing import Floor, Measurement, Work
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import program as programs


class Case(NamedTuple):
    """A training step to measure, on the copy task unless `config` says otherwise.

    Attributes:
      cell: its name in the registry.
      estimator: its name in the registry.
      n: the cell's hidden size.
      batch: lanes.
      floor: "product" is J A for every site, with the dense columns of J, times the rank; "single
        product" is the same at rank one; "influence" is J G; "every step" is the same training with the
        influence pushed at every step; "passes" is one read and write of everything that the estimator
        keeps for the parameters; "flax" is the same training written with Flax's own RNN and
        `jax.grad`; "alone" is the runs of `seeds` one after another; anything else names another cell,
        whose training step is the floor.
      target: the largest ratio that counts as reached.
      arguments: of the estimator.
      segment_length: K.
      update_every: U; 0 means K.
      seeds: the number of runs in one program, compared with the same runs one after another.
      config: the module in configs/ to start from.
      steps: time steps per run; chosen by the sizes if None.
    """

    cell: str
    estimator: str
    n: int
    batch: int
    floor: str = "product"
    target: float | None = None
    arguments: Mapping[str, int] = {}
    segment_length: int = 1
    update_every: int = 0
    seeds: int = 0
    config: str = "copy"
    steps: int | None = None

    @property
    def name(self) -> str:
        """Cell and estimator."""
        name = f"{self.cell} {timing.called(self.estimator, self.arguments)}"
        name += f" K={self.segment_length}" if self.segment_length > 1 else ""
        name += f" U={self.update_every}" if self.update_every else ""
        name += f" {self.config}" if self.config != "copy" else ""
        return name + (f", {self.seeds} seeds" if self.seeds else "")


STEP_SUITE = (
    Case("recurrent_highway", "kf_rtrl", 128, 16, target=1.35),
    Case("recurrent_highway", "kf_rtrl", 256, 32, target=1.25),
    Case("recurrent_highway", "kf_rtrl", 512, 16, target=1.15),
    Case("lstm", "kf_rtrl", 256, 32, target=1.35),
    Case("lstm", "kf_rtrl", 128, 16),
    Case("gru", "kf_rtrl", 128, 16),
    Case("vanilla", "kf_rtrl", 128, 16),
    Case("recurrent_highway", "ok", 128, 16, target=1.6, arguments={"rank": 16}),
    Case("recurrent_highway", "uoro", 256, 32, floor="passes", target=2.0),
    Case("recurrent_highway", "rtrl", 64, 8, floor="influence", target=1.3),
    Case("recurrent_highway", "snap", 256, 32, "passes", 2.0, {"order": 1}),
    # The same steps without any influence: the part of a step that is not the estimator's.
    Case("recurrent_highway", "truncated", 128, 16),
    Case("recurrent_highway", "truncated", 256, 32),
    Case("flax_optimized_lstm", "truncated", 256, 32, "flax", 1.0, segment_length=25),
    Case("lstm", "truncated", 256, 32, "flax", 1.0, segment_length=25),
    Case("recurrent_highway", "kf_rtrl", 64, 8, "alone", 0.7, seeds=16),
    # Updates at every step, the influence pushed once in K.
    Case("recurrent_highway", "kf_rtrl", 128, 16, "product", 1.0, {}, 8, 1),
    Case("recurrent_highway", "kf_rtrl", 256, 32, "product", 0.9, {}, 8, 1),
    Case("lstm", "kf_rtrl", 256, 32, "product", 0.75, {}, 8, 1),
    Case("recurrent_highway", "ok", 128, 16, "every step", 1 / 6, {"rank": 16}, 8, 1),
    Case("recurrent_highway", "ok", 128, 16, "single product", 4.0, {"rank": 16}, 16, 1),
    Case("recurrent_highway", "rtrl", 64, 8, "every step", 1 / 6, {}, 16, 1),
    Case("recurrent_highway", "uoro", 256, 32, "every step", 0.4, {}, 16, 1),
    Case("recurrent_highway", "snap", 256, 32, "every step", 0.4, {"order": 1}, 16, 1),
    Case("recurrent_highway", "truncated", 128, 16, "every step", 3.0, {}, 8, 1),
)
# For accelerators only. The third row's nine rounds are 36,000 steps, from which
# `kfrtrl benchmark` extrapolates the time of a million.
GPU_SUITE = (
    Case("recurrent_highway", "kf_rtrl", 256, 32, target=1.5),
    Case("recurrent_highway", "kf_rtrl", 1024, 64, target=1.25),
    Case("recurrent_highway", "kf_rtrl", 256, 32, config="ptb", steps=4000),
)
# An unmodified cell of Flax; its floor is our own cell of the same size.
FLAX_SUITE = (
    Case("flax_optimized_lstm", "kf_rtrl", 128, 16, floor="lstm"),
    Case("flax_gru", "kf_rtrl", 128, 16, floor="gru"),
)


def measure_step(
    case: Case, config: Any, *, suite: str, rounds: int = 9, steps: int | None = None
) -> Measurement:
    """Measures a case against its floor.

    Args:
      case: what to measure.
      config: the config to start from.
      suite: the suite's name, for the record.
      rounds: how often each of the two is run.
      steps: time steps per run; chosen by the case's size if None.
    """
    steps = steps or case.steps or _steps(case)
    steps = -(-steps // case.segment_length) * case.segment_length
    resolved = resolve(config, case, steps)
    floor = _floor(case, resolved, config, steps)
    if case.seeds:
        work = _population(programs.build(resolved), case.seeds, steps)
    else:
        work = training(resolved)
    sizes = {
        "n": case.n,
        "batch": case.batch,
        "segment_length": case.segment_length,
        "update_every": case.update_every or case.segment_length,
    }
    return timing.compare(
        work, floor, suite=suite, name=case.name, target=case.target, rounds=rounds, **sizes
    )


def resolve(config: Any, case: Case, steps: int) -> Any:
    """The config of a case, with chunks of `steps` time steps."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.cell = {"name": case.cell, "hidden_size": case.n}
        config.estimator = {"name": case.estimator, **case.arguments}
        config.task.batch_size, config.segment_length = case.batch, case.segment_length
        config.update_every = case.update_every
        config.num_steps = config.log_every = config.checkpoint_every = steps
        config.eval_every = 0
    return configs.resolve(config)


def training(resolved: Any) -> Work:
    """A run that continues by one chunk per call."""
    experiment = programs.build(resolved)
    return timing.resumed(
        xla.jit(experiment.run_chunk, donate_argnums=0),
        jax.jit(experiment.init)(0),
        resolved.log_every,
    )


def linearization(case: Case) -> Linearization:
    """The shapes of the cell's linearization, including which blocks of J are dense."""
    cell = CELLS[case.cell](input_size=VOCABULARY_SIZE, hidden_size=case.n)
    cell = on_tokens(cell, VOCABULARY_SIZE)
    linearizer = make_linearizer(cell, jnp.int32(0), case.batch)

    def at_the_start(key: Any) -> Linearization:
        lanes = jax.tree.map(
            lambda c: jnp.zeros((case.batch, *c.shape), c.dtype), cell.initial_carry()
        )
        tokens = jnp.zeros(case.batch, jnp.int32)
        made = linearizer.linearize(cell.init(key), lanes, tokens, jnp.ones(case.batch))
        return made._replace(jacobian=BlockColumns(made.jacobian.blocks))

    return jax.eval_shape(at_the_start, jax.random.key(0))


def dense_columns(linearized: Linearization) -> int:
    """The number of columns of J in dense blocks, which need a matrix product."""
    blocks = linearized.jacobian.blocks
    return sum(block.shape[1] for block in blocks if not isinstance(block, Banded))


def influence_shapes(estimator: str, structure: Any) -> list[tuple[int, ...]]:
    """The shapes of the arrays that an estimator of rank one or order one keeps for the parameters.

    Raises:
      ValueError: for an estimator whose speed is limited by products, not by memory.
    """
    if estimator not in ("uoro", "snap"):
        raise ValueError(f"passes are a floor of uoro and snap, not of {estimator!r}")
    b, n = structure.batch_size, structure.state_size
    shapes: list[tuple[int, ...]] = []
    for site in structure.sites:
        m, g = site.input_size, site.output_size
        if estimator == "uoro":
            shapes.append((b, m, g))
        elif site.columns is not None:
            shapes.append((b, m, *site.columns.array.shape))
        else:
            shapes.append((b, m, n, g))
    return shapes


def _floor(case: Case, resolved: Any, config: Any, steps: int) -> Floor:
    if case.floor == "flax":
        return flax_training(resolved)
    if case.floor == "alone":
        return _one_after_another(programs.build(resolved), case.seeds, steps)
    if case.floor == "every step":
        other = case._replace(segment_length=1, update_every=1)
        return Floor("the influence pushed every step", training(resolve(config, other, steps)))
    if case.floor in CELLS:
        other = case._replace(cell=case.floor)
        return Floor(f"a training step with {case.floor}", training(resolve(config, other, steps)))
    structure = programs.build(resolved).about.structure
    b, n, dtype = structure.batch_size, structure.state_size, structure.dtype
    if case.floor == "passes":
        return floors.passes(influence_shapes(case.estimator, structure), dtype)
    columns = dense_columns(linearization(case))
    rank = case.arguments.get("rank", 1) if case.floor == "product" else 1
    if case.floor == "influence":
        widths = [site.input_size * site.output_size for site in structure.sites]
    else:
        # A site with one input has one exact product, whatever the rank.
        widths = [
            site.output_size
            for site in structure.sites
            for _ in range(rank if site.input_size > 1 else 1)
        ]
    return floors.product(b, n, columns, widths, dtype)


def _population(experiment: programs.Experiment, seeds: int, steps: int) -> Work:
    states = jax.jit(jax.vmap(experiment.init))(jnp.arange(seeds))
    return timing.resumed(xla.jit(jax.vmap(experiment.run_chunk), donate_argnums=0), states, steps)


def _one_after_another(experiment: programs.Experiment, seeds: int, steps: int) -> Floor:
    init, chunk = jax.jit(experiment.init), xla.jit(experiment.run_chunk, donate_argnums=0)
    runs = [timing.resumed(chunk, init(seed), steps) for seed in range(seeds)]
    return Floor(f"{seeds} runs one after another", Work(lambda: [r.run() for r in runs], steps))


def _steps(case: Case) -> int:
    """Fewer steps for larger cells, but enough to make the costs per chunk negligible."""
    rank = case.arguments.get("rank", 1)
    steps = min(50, max(20, 2e10 / (4 * case.batch * case.n**3 * rank)))
    return round(steps if jax.default_backend() == "cpu" else 20 * steps)
