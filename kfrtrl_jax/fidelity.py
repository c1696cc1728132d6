"""How far each estimator is from the exact influence, on the same trajectories.

For a cell with random parameters on random inputs, a lane of which starts anew in the middle: the mean
of an estimator's gradients over many draws against those of `rtrl`, with a verdict for the unbiased,
their spread, their cosine, and what the estimator costs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax import estimators
from kfrtrl_jax.base import Array, Cell, InfluenceEstimator, Linearization
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.learner import initial_lanes, restarted
from kfrtrl_jax.linearization import Linearizer, make_linearizer

# What claims that the mean of its estimate is the influence matrix.
UNBIASED = ("rtrl", "uoro", "kf_rtrl", "ok", "ktp", "forward_gradient")


class Row(NamedTuple):
    """One estimator on one cell.

    Attributes:
      cell: its name.
      estimator: its name.
      claims_unbiased: whether its mean should be the exact gradient.
      bias_z: the largest deviation of a few fixed random projections of the mean, in standard errors;
        for an estimator without randomness 0 if it is exact, else None.
      relative_bias: |mean - G|_F / |G|_F; for an unbiased one, what is left after so many draws.
      relative_noise: E|G~ - E G~|_F^2 / |G|_F^2.
      cosine: of a draw's gradient with the exact one, the mean over draws and random cotangents.
      state_bytes: of the estimator's state.
      flops_per_step: floating-point operations of a push, as XLA counts them before it optimizes.
      seconds_per_step: of a push, all draws together, divided by their number.
    """

    cell: str
    estimator: str
    claims_unbiased: bool
    bias_z: float | None
    relative_bias: float
    relative_noise: float
    cosine: float
    state_bytes: int
    flops_per_step: float
    seconds_per_step: float


class Trajectory(NamedTuple):
    """T linearized steps of a cell.

    Attributes:
      linearizer: the cell's.
      linearizations: stacked, [T, B, ...].
    """

    linearizer: Linearizer
    linearizations: Linearization


def trajectory(
    cell: Cell, *, input_size: int, batch_size: int, steps: int, seed: int
) -> Trajectory:
    """Runs a cell with its own first parameters on standard normal inputs."""
    params_key, input_key = jax.random.split(jax.random.key(seed))
    params = cell.init(params_key)
    inputs = jax.random.normal(input_key, (steps, batch_size, input_size))
    reset = np.zeros((steps, batch_size), bool)
    reset[0] = True
    reset[steps // 2, -1] = True
    linearizer = make_linearizer(cell, inputs[0, 0], batch_size)

    def step(carry: Any, xs: tuple[Array, Array]) -> tuple[Any, Linearization]:
        x, starts = xs
        carry = restarted(cell, carry, starts)
        keep = 1 - starts.astype(linearizer.structure.dtype)
        linearization = linearizer.linearize(params, carry, x, keep)
        carry, _ = jax.vmap(cell.step, in_axes=(None, 0, 0))(params, carry, x)
        return carry, linearization

    first = initial_lanes(cell, batch_size)
    _, linearizations = jax.lax.scan(step, first, (inputs, jnp.asarray(reset)))
    return Trajectory(linearizer, linearizations)


def gradients(
    estimator: InfluenceEstimator, along: Trajectory, key: Array, cotangents: Array
) -> Array:
    """What one draw of the estimator pulls at the end, for cotangents [C, B, n]: [C, all weights]."""

    def step(state: Any, xs: tuple[Linearization, Array]) -> tuple[Any, None]:
        return estimator.push(state, *xs), None

    structure = along.linearizer.structure
    length = len(jax.tree.leaves(along.linearizations)[0])
    state, _ = jax.lax.scan(
        step, estimator.init(structure), (along.linearizations, jax.random.split(key, length))
    )

    def pull(cotangent: Array) -> Array:
        return jnp.concatenate([g.reshape(-1) for g in estimator.pull(state, cotangent)])

    return jax.vmap(pull)(cotangents)


def certify(
    cells: Mapping[str, Cell],
    named: Mapping[str, InfluenceEstimator],
    *,
    input_size: int,
    batch_size: int = 2,
    steps: int = 20,
    draws: int = 4096,
    seed: int = 0,
) -> list[Row]:
    """A row for every estimator on every cell that it takes.

    Args:
      cells: by name, reading vectors of `input_size`.
      named: estimators by name; of "ok(rank=8)" the part before the bracket tells what it claims.
      input_size: length of the inputs.
      batch_size: B.
      steps: T.
      draws: of every estimator.
      seed: of parameters, inputs and draws.
    """
    rows = []
    for cell_name, cell in cells.items():
        along = trajectory(
            cell, input_size=input_size, batch_size=batch_size, steps=steps, seed=seed
        )
        n = along.linearizer.structure.state_size
        # The identity: all of G, lane by lane.
        cotangents = jnp.eye(batch_size * n).reshape(-1, batch_size, n)
        exact = gradients(estimators.rtrl(), along, jax.random.key(0), cotangents)
        for name, estimator in named.items():
            try:
                along_row = _row(cell_name, name, estimator, along, exact, cotangents, draws, seed)
            except UnsupportedCellError:
                continue
            rows.append(along_row)
    return rows


def _row(
    cell_name: str,
    name: str,
    estimator: InfluenceEstimator,
    along: Trajectory,
    exact: Array,
    cotangents: Array,
    draws: int,
    seed: int,
) -> Row:
    structure = along.linearizer.structure
    directions = jax.random.normal(jax.random.key(seed + 1), (8, *exact.shape))
    probes = jax.random.normal(jax.random.key(seed + 2), (8, len(cotangents)))
    exact_probed = probes @ exact

    def one(key: Array) -> tuple[Array, Array, Array, Array]:
        got = gradients(estimator, along, key, cotangents)
        probed = probes @ got
        cosines = jnp.sum(probed * exact_probed, axis=1) / jnp.maximum(
            jnp.linalg.norm(probed, axis=1) * jnp.linalg.norm(exact_probed, axis=1), 1e-300
        )
        projected = jnp.sum(directions * got, axis=(1, 2))
        return projected, got, jnp.sum((got - exact) ** 2), jnp.mean(cosines)

    @jax.jit
    def chunk(keys: Array) -> tuple[Array, Array, Array, Array]:
        projected, got, squared, cosine = jax.vmap(one)(keys)
        return projected, jnp.sum(got, axis=0), jnp.sum(squared), jnp.sum(cosine)

    size = min(draws, 256)
    keys = jax.random.split(jax.random.key(seed + 3), draws // size * size).reshape(-1, size)
    jax.block_until_ready(chunk(keys[0]))
    start = time.perf_counter()
    results = jax.block_until_ready([chunk(k) for k in keys])
    count = keys.size
    seconds = (time.perf_counter() - start) / (
        count * len(jax.tree.leaves(along.linearizations)[0])
    )
    projected = np.concatenate([r[0] for r in results])
    mean = sum(np.asarray(r[1]) for r in results) / count
    squared = sum(float(r[2]) for r in results) / count
    total = float(jnp.sum(exact**2))
    bias = float(np.sum((mean - np.asarray(exact)) ** 2))
    wanted = np.asarray(jnp.sum(directions * exact, axis=(1, 2)))
    spread = projected.std(axis=0, ddof=1)
    off = np.abs(projected.mean(axis=0) - wanted)
    # Draws that are all alike (to rounding) have no standard error: they are right or they are not.
    scale = np.abs(wanted).max() + 1e-300
    alike = spread < 1e-9 * scale
    z = np.where(
        alike, np.where(off < 1e-8 * scale, 0.0, np.inf), off / (spread / math.sqrt(count) + 1e-300)
    )
    state = jax.eval_shape(lambda: estimator.init(structure))
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), along.linearizations
    )
    cost = jax.jit(estimator.push).lower(state, shapes, jax.random.key(0)).cost_analysis() or {}
    return Row(
        cell=cell_name,
        estimator=name,
        claims_unbiased=name.split("(")[0] in UNBIASED,
        bias_z=float(z.max()) if np.all(np.isfinite(z)) else None,
        relative_bias=math.sqrt(bias / total),
        relative_noise=max(squared - bias, 0.0) / total,
        cosine=sum(float(r[3]) for r in results) / count,
        state_bytes=sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state)),
        flops_per_step=float(cost.get("flops", 0.0)),
        seconds_per_step=seconds,
    )


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    head = (
        "| cell | estimator | unbiased | bias z | relative bias | noise | cosine | bytes | flops |"
    )
    lines = [head, "|" + "---|" * 9]
    for r in rows:
        off = "-" if r.bias_z is None else f"{r.bias_z:.2f}"
        sound = r.bias_z is not None and r.bias_z < 4
        claim = ("yes" if sound else "NO") if r.claims_unbiased else "-"
        lines.append(
            f"| {r.cell} | {r.estimator} | {claim} | {off} | {r.relative_bias:.3g} | "
            f"{r.relative_noise:.3g} | {r.cosine:.3f} | {r.state_bytes} | {r.flops_per_step:.3g} |"
        )
    return "\n".join(lines) + "\n"
