"""Every estimator against exact RTRL, on the same trajectories: bias, noise, cosine and cost."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax import estimators
from kfrtrl_jax._src.sizes import bytes_of
from kfrtrl_jax._src.trajectory import (
    Options,
    Reference,
    Trajectory,
    all_cotangents,
    gradients,
    in_segments,
    push_all,
    reference,
    trajectory,
)
from kfrtrl_jax.base import Array, Cell, InfluenceEstimator, Linearization
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.linearization import compose
from kfrtrl_jax.studies.benchmarking import timing
from kfrtrl_jax.studies.fidelity import cosine
from kfrtrl_jax.studies.fidelity.names import Named

# An estimator that claims to be unbiased fails if it deviates by more standard errors than this.
LIMIT = 4.0
# The number of draws made at once, and the number of points in a curve over time.
_CHUNK = 256
_POINTS = 64
# The number of entries of all influence matrices that are held at once.
_MOST = 2**25


class CertificateRow(NamedTuple):
    """The result for one estimator on one cell.

    Attributes:
      cell: its name.
      estimator: its name, with arguments.
      segment_length: K, the number of steps pushed at once.
      claims_unbiased: whether its mean should be the exact gradient.
      unbiased: whether it is, as far as these draws can tell; None if that is not claimed.
      bias_z: the largest deviation of a few fixed random projections of the mean, in standard errors.
        For an estimator without randomness it is 0 if that is exact, else None.
      relative_bias: |mean - G|_F / |G|_F; for an unbiased estimator, the error left by the number of
        draws.
      relative_noise: E|G~ - E G~|_F^2 / |G|_F^2.
      cosine: between a draw's gradient and the exact one at the end, the mean over draws and a few
        fixed random cotangents.
      times: the steps of `cosine_over_time`, counted from 1.
      cosine_over_time: the cosine after each of them.
      state_bytes: of the estimator's state.
      flops_per_step: floating-point operations of a push and a pull, divided by K, as XLA counts them
        before it optimizes.
      time_ratio: time of a push and a pull, divided by K, over that of `kf_rtrl` with K = 1 on the same
        cell, at the size for timing: the ratio of medians of alternating runs. None if it was not
        measured or if `kf_rtrl` does not take the cell.
      seconds_per_step: the median in the numerator of that ratio.
    """

    cell: str
    estimator: str
    segment_length: int
    claims_unbiased: bool
    unbiased: bool | None
    bias_z: float | None
    relative_bias: float
    relative_noise: float
    cosine: float
    times: list[int]
    cosine_over_time: list[float]
    state_bytes: int
    flops_per_step: float
    time_ratio: float | None
    seconds_per_step: float | None


class Refusal(NamedTuple):
    """An estimator that refuses a cell, with the reason."""

    cell: str
    estimator: str
    reason: str


class Size(NamedTuple):
    """The size of a cell and the length of its run.

    Attributes:
      input_size: length of the inputs.
      hidden_size: the cell's argument.
      batch_size: B.
      steps: T.
    """

    input_size: int
    hidden_size: int
    batch_size: int
    steps: int


class Certificate(NamedTuple):
    """The results for all estimators and cells.

    Attributes:
      rows: one for every estimator on every cell that it takes.
      refusals: one for every estimator on every cell that it refuses.
    """

    rows: list[CertificateRow]
    refusals: list[Refusal]


Race = Callable[[InfluenceEstimator, int], tuple[float | None, float | None]]


class _Draws(NamedTuple):
    """Statistics of many draws of an estimator on one trajectory. P counts the weights of all sites.

    Attributes:
      mean: of G~ after the last step, [B n, P].
      squared_error: E|G~ - G|_F^2.
      projected: random projections of G~ for every draw, [draws, projections].
      cosines: with the exact gradient after every push, [T / K].
    """

    mean: np.ndarray
    squared_error: float
    projected: np.ndarray
    cosines: np.ndarray


def certify(
    cells: Mapping[str, Callable[..., Cell]],
    named: Sequence[Named],
    size: Size,
    *,
    segment_lengths: Sequence[int] = (1,),
    draws: int = 4096,
    seed: int = 0,
    timed: Size | None = None,
    rounds: int = 5,
) -> Certificate:
    """Runs every estimator on every cell.

    Before each push an estimator is told of the probes, as `InfluenceEstimator.observe` tells it in
    training of the cotangents that it was pulled with.

    Args:
      cells: by name, functions of `input_size` and `hidden_size`.
      named: the estimators.
      size: of the trajectories, whose last lane starts anew in the middle.
      segment_lengths: K, the numbers of steps pushed at once; each divides the number of steps.
      draws: of every estimator; rounded up to a multiple of 256 beyond that number.
      seed: of parameters, inputs and draws.
      timed: the size for timing, in single precision; None for no timing.
      rounds: alternating runs per timing.
    """

    def along(make: Callable[..., Cell], size: Size) -> Trajectory:
        cell = make(input_size=size.input_size, hidden_size=size.hidden_size)
        return trajectory(
            cell,
            input_size=size.input_size,
            batch_size=size.batch_size,
            steps=size.steps,
            seed=seed,
        )

    certificate = Certificate([], [])
    for cell, make in cells.items():
        exact = reference(along(make, size), seed=seed + 1)
        race = _race(along(make, timed).astype(jnp.float32), rounds) if timed else None
        for one in named:
            try:
                jax.eval_shape(functools.partial(one.estimator.init, exact.trajectory.structure))
            except UnsupportedCellError as error:
                certificate.refusals.append(Refusal(cell, one.name, str(error)))
                continue
            certificate.rows.extend(
                row_of(cell, one, length, exact, race, draws, seed) for length in segment_lengths
            )
    return certificate


def deviations(
    estimator: InfluenceEstimator,
    exact: Reference,
    *,
    draws: int,
    seed: int = 0,
    segment_length: int = 1,
    projections: int = 6,
    compiler_options: Options = None,
) -> np.ndarray:
    """How far off the mean is: fixed random projections of it, [projections], in standard errors.

    Each is sum_ij c_i G_ij d_j for one of the probes c and a random d. If all draws are equal, it is 0
    if they are right, else infinite.

    Args:
      estimator: any estimator.
      exact: with at least as many probes as projections.
      draws: of the estimator; rounded up to a multiple of 256 beyond that number.
      seed: of the draws and directions.
      segment_length: K, the number of steps pushed at once.
      projections: their number.
      compiler_options: for `jax.jit`; at small sizes an optimizing compilation takes longer than the
        draws.
    """
    probes, target = exact.probes[:projections], exact.gradients[-1, :projections]
    directions = jax.random.normal(jax.random.key(seed + 1), target.shape, target.dtype)

    def one(key: Array, linearizations: Linearization) -> Array:
        along = exact.trajectory._replace(linearizations=linearizations)
        state = push_all(estimator, along, key, segment_length, observed=exact.probes)
        got = gradients(estimator, state, probes, along.structure)
        return jnp.sum(directions * got, axis=1)

    @functools.partial(jax.jit, compiler_options=compiler_options)
    def all_draws(keys: Array, linearizations: Linearization) -> Array:
        return jax.lax.map(
            lambda chunk: jax.vmap(one, in_axes=(0, None))(chunk, linearizations), keys
        )

    keys = _chunks(draws, seed)
    projected = all_draws(keys, exact.trajectory.linearizations).reshape(keys.size, projections)
    return standardized(np.asarray(projected), np.asarray(jnp.sum(directions * target, axis=1)))


def violations(certificate: Certificate) -> list[CertificateRow]:
    """The rows whose estimator claims to be unbiased and is not."""
    return [row for row in certificate.rows if row.unbiased is False]


def markdown(certificate: Certificate) -> str:
    """The rows as a table, cell by cell, and the refusals among them."""
    head = ["cell", "estimator", "K", "unbiased", "bias z", "relative bias", "noise", "cosine", "bytes",
            "flops", "time / kf_rtrl"]  # fmt: skip
    lines = [[*head], ["---"] * len(head)]
    for r in certificate.rows:
        verdict = "-" if r.unbiased is None else "yes" if r.unbiased else "NO"
        off = "-" if r.bias_z is None else f"{r.bias_z:.2f}"
        time = "-" if r.time_ratio is None else f"{r.time_ratio:.2f}"
        lines.append(
            [r.cell, r.estimator, f"{r.segment_length}", verdict, off, f"{r.relative_bias:.3g}",
             f"{r.relative_noise:.3g}", f"{r.cosine:.3f}", f"{r.state_bytes}",
             f"{r.flops_per_step:.3g}", time]
        )  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "| " + " | ".join(entry.ljust(width) for entry, width in zip(line, widths)) + " |"
        for line in lines
    ]
    # Each refusal follows the rows of its cell.
    last = {row.cell: i for i, row in enumerate(certificate.rows, start=2)}
    for refusal in reversed(certificate.refusals):
        reason = refusal.reason.replace("|", "\\|")
        line = f"| {refusal.cell} | {refusal.estimator} | refused: {reason} |"
        text.insert(last.get(refusal.cell, len(text) - 1) + 1, line)
    return "\n".join(text) + "\n"


def row_of(
    cell: str,
    one: Named,
    segment_length: int,
    exact: Reference,
    race: Race | None,
    draws: int,
    seed: int,
) -> CertificateRow:
    """The result for one estimator and segment length on a cell, given its exact influence."""
    directions = jax.random.normal(jax.random.key(seed + 2), (8, *exact.influence.shape))
    got = _draw(one.estimator, segment_length, exact, directions, draws, seed + 3)
    target = np.asarray(jnp.sum(directions * exact.influence, axis=(1, 2)))
    z = float(np.max(standardized(got.projected, target)))
    total = float(jnp.sum(exact.influence**2))
    bias = float(np.sum((got.mean - np.asarray(exact.influence)) ** 2))
    kept = np.unique(np.linspace(0, len(got.cosines) - 1, _POINTS).round().astype(int))
    ratio, seconds = race(one.estimator, segment_length) if race else (None, None)
    structure = exact.trajectory.structure
    state = jax.eval_shape(lambda: one.estimator.init(structure))
    return CertificateRow(
        cell=cell,
        estimator=one.name,
        segment_length=segment_length,
        claims_unbiased=one.claims_unbiased,
        unbiased=z <= LIMIT if one.claims_unbiased else None,
        bias_z=z if math.isfinite(z) else None,
        relative_bias=math.sqrt(bias / total),
        relative_noise=max(got.squared_error - bias, 0.0) / total,
        cosine=float(got.cosines[-1]),
        times=[segment_length * (int(t) + 1) for t in kept],
        cosine_over_time=[float(got.cosines[t]) for t in kept],
        state_bytes=bytes_of(state),
        flops_per_step=_flops(one.estimator, exact.trajectory, segment_length),
        time_ratio=ratio,
        seconds_per_step=seconds,
    )


def _draw(
    estimator: InfluenceEstimator,
    segment_length: int,
    exact: Reference,
    directions: Array,
    draws: int,
    seed: int,
) -> _Draws:
    along, probes = exact.trajectory, exact.probes
    everything = all_cotangents(along.structure)
    Exact = tuple[Linearization, Array, Array]

    def one(key: Array, exact: Exact) -> tuple[Array, Array, Array, Array]:
        segments, targets, influence = exact

        def step(state: Any, xs: tuple[Linearization, Array, Array]) -> tuple[Any, Array]:
            steps, target, key = xs
            state = estimator.observe(state, probes)
            state = estimator.push(state, compose(steps), key)
            got = gradients(estimator, state, probes, along.structure)
            return state, jnp.mean(cosine.of_rows(got, target))

        xs = (segments, targets, jax.random.split(key, along.steps // segment_length))
        state, cosines = jax.lax.scan(step, estimator.init(along.structure), xs)
        got = gradients(estimator, state, everything, along.structure)
        projected = jnp.sum(directions * got, axis=(1, 2))
        return got, jnp.sum((got - influence) ** 2), projected, cosines

    @jax.jit
    def chunk(keys: Array, exact: Exact) -> tuple[Array, Array, Array, Array]:
        got, squared, projected, cosines = jax.vmap(one, in_axes=(0, None))(keys, exact)
        return jnp.sum(got, axis=0), jnp.sum(squared), projected, jnp.sum(cosines, axis=0)

    keys = _chunks(draws, seed, max(1, min(_CHUNK, _MOST // exact.influence.size)))
    targets = exact.gradients[segment_length - 1 :: segment_length]
    given = (in_segments(along, segment_length), targets, exact.influence)
    chunks = [[np.asarray(x) for x in chunk(k, given)] for k in keys]
    got, squared, projected, cosines = zip(*chunks)
    count = keys.size
    return _Draws(
        np.sum(got, axis=0) / count,
        float(np.sum(squared)) / count,
        np.concatenate(projected),
        np.sum(cosines, axis=0) / count,
    )


def _chunks(draws: int, seed: int, most: int = _CHUNK) -> Array:
    """Keys for at least this many draws, [chunks, draws per chunk]."""
    size = min(draws, most)
    chunks = -(-draws // size)
    return jax.random.split(jax.random.key(seed), (chunks, size))


def standardized(projected: np.ndarray, target: np.ndarray) -> np.ndarray:
    """|mean - target| in standard errors, for draws [draws, k] and target [k]."""
    spread = projected.std(axis=0, ddof=1)
    off = np.abs(projected.mean(axis=0) - target)
    # Draws that are equal up to rounding have no standard error: they are either right or wrong.
    scale = np.abs(target).max() + np.finfo(float).tiny
    rounding = 1e-9 if projected.dtype == np.float64 else 1e-5
    alike = spread < rounding * scale
    error = np.where(alike, 1, spread) / math.sqrt(len(projected))
    return np.where(alike, np.where(off < 10 * rounding * scale, 0.0, np.inf), off / error)


def _flops(estimator: InfluenceEstimator, along: Trajectory, segment_length: int) -> float:
    """Floating-point operations of a push and a pull, per step, before XLA optimizes."""
    structure = along.structure
    state = jax.eval_shape(lambda: estimator.init(structure))
    cotangent = jax.ShapeDtypeStruct((structure.batch_size, structure.state_size), structure.dtype)
    steps = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((segment_length, *x.shape[1:]), x.dtype),
        along.linearizations,
    )

    def step(state: Any, steps: Linearization, cotangent: Array) -> Any:
        pulled = estimator.pull(state, cotangent)
        state = estimator.observe(state, cotangent[None])
        return estimator.push(state, compose(steps), jax.random.key(0)), pulled

    cost = jax.jit(step).lower(state, steps, cotangent).cost_analysis() or {}
    return float(cost.get("flops", 0.0)) / segment_length


def _race(along: Trajectory, rounds: int) -> Race:
    """A function that times an estimator: (time over that of `kf_rtrl`, seconds per step)."""
    try:
        floor = work_of(estimators.kf_rtrl(), along, 1)
    except UnsupportedCellError:
        return lambda estimator, segment_length: (None, None)

    def race(estimator: InfluenceEstimator, segment_length: int) -> tuple[float, float]:
        samples = timing.alternate(work_of(estimator, along, segment_length), floor, rounds)
        return timing.ratios(samples)[0], timing.median(seconds for seconds, _ in samples)

    return race


def work_of(estimator: InfluenceEstimator, along: Trajectory, segment_length: int) -> timing.Work:
    """The pushes and pulls of an estimator along a trajectory, as a program to time."""
    structure = along.structure
    cotangent = jnp.ones((structure.batch_size, structure.state_size), structure.dtype)
    first = estimator.init(structure)

    @jax.jit
    def run(linearizations: Linearization, keys: Array, cotangent: Array) -> Any:
        def step(carry: Any, xs: tuple[Linearization, Array]) -> tuple[Any, None]:
            state, total = carry
            total = jax.tree.map(jnp.add, total, estimator.pull(state, cotangent))
            steps, key = xs
            state = estimator.observe(state, cotangent[None])
            return (estimator.push(state, compose(steps), key), total), None

        total = jax.tree.map(jnp.zeros_like, estimator.pull(first, cotangent))
        return jax.lax.scan(step, (first, total), (linearizations, keys))[0]

    keys = jax.random.split(jax.random.key(0), along.steps // segment_length)
    segments = in_segments(along, segment_length)
    return timing.Work(lambda: run(segments, keys, cotangent), along.steps)
