"""Noise against width and over time, beside the predictions of the analyses of KF-RTRL and UORO.

With |a| and |D| of the order of sqrt(n) and |J| < 1, the noise of KF-RTRL relative to |G|_F^2 stays of
order 1 as the width n grows, while UORO's grows like n (Mujika, Meier and Steger, 2018,
arXiv:1805.10842); over time both stay bounded. Whether a cell is in that regime is measured as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax import estimators
from kfrtrl_jax._src.markdown import table
from kfrtrl_jax._src.trajectory import Trajectory, gradients, push_all, trajectory
from kfrtrl_jax.base import Array, Cell, InfluenceEstimator, Linearization, Structure
from kfrtrl_jax.studies import power_law
from kfrtrl_jax.studies.fidelity.names import Named

# The exponent of n in the relative noise; other estimators have no prediction.
PREDICTED = {"uoro": 1, "kf_rtrl": 0, "average": 0, "ok": 0}
# Rows of G compared at a time, as a second G may not fit in memory.
_ROWS = 8


class Width(NamedTuple):
    """An estimator's noise at one width, at the end of a trajectory.

    Attributes:
      estimator: its name, with arguments.
      hidden_size: n.
      relative_noise: E|G~ - G|_F^2 / |G|_F^2, the mean over draws.
      standard_error: of that mean.
    """

    estimator: str
    hidden_size: int
    relative_noise: float
    standard_error: float


class Regime(NamedTuple):
    """Whether a trajectory is in the regime of the theory; means over its second half.

    Attributes:
      hidden_size: n.
      input_norm: |a| / sqrt(n), over all sites.
      derivative_norm: |D|_F / sqrt(n), over all sites.
      jacobian_norm: the largest singular value of J.
      largest_jacobian_norm: the largest of these over the second half.
    """

    hidden_size: int
    input_norm: float
    derivative_norm: float
    jacobian_norm: float
    largest_jacobian_norm: float


class NoiseExponent(NamedTuple):
    """The fit of a line to log noise against log n.

    Attributes:
      slope: the exponent of n; None if there is no noise.
      standard_error: of the slope, from the points' distances to the line.
      predicted: by theory; None if there is no prediction.
    """

    slope: float | None
    standard_error: float | None
    predicted: int | None


class Drift(NamedTuple):
    """Noise early and late in a long run.

    Attributes:
      first: the mean over the first thousand steps.
      last: the mean over the last thousand.
    """

    first: float
    last: float


class Theory(NamedTuple):
    """The results of the experiment.

    Attributes:
      cell: its description.
      widths: one entry per estimator and width.
      regimes: one per width.
      fits: by estimator.
      time_width: n of the long run.
      times: the steps of the long run at which noise was measured.
      over_time: by estimator, the relative noise at these steps.
      drifts: by estimator.
    """

    cell: str
    widths: list[Width]
    regimes: list[Regime]
    fits: dict[str, NoiseExponent]
    time_width: int
    times: list[int]
    over_time: dict[str, list[float]]
    drifts: dict[str, Drift]


def against_width(
    make: Callable[[int], Cell],
    named: Sequence[Named],
    widths: Sequence[int],
    *,
    steps: int,
    draws: int,
    seed: int = 0,
) -> tuple[list[Width], list[Regime]]:
    """The relative noise of G~ after some steps, for growing cells.

    There is one lane. Its inputs are as long as the state, so that |a| grows with the width. G is held
    in memory once and G~ never as a whole: draws are made one by one, a few rows at a time.

    Args:
      make: width -> a cell that reads vectors of that length.
      named: the estimators, which must be unbiased.
      widths: values of n.
      steps: T.
      draws: of every estimator.
      seed: of parameters, inputs and draws.
    """
    rows, regimes = [], []
    for width in widths:
        along = _along(make, width, steps, seed)
        regimes.append(_regime(along, width))
        influence = jax.jit(
            lambda linearizations, along=along: _flat(
                push_all(
                    estimators.rtrl(),
                    along._replace(linearizations=linearizations),
                    jax.random.key(0),
                ).influence
            )[0]
        )(along.linearizations)
        total = float(jnp.sum(influence**2))
        for one in named:
            errors = _errors(one.estimator, along, influence, draws, seed + 1) / total
            spread = float(np.std(errors, ddof=1))
            rows.append(Width(one.name, width, float(np.mean(errors)), spread / math.sqrt(draws)))
    return rows, regimes


def over_time(
    make: Callable[[int], Cell],
    named: Sequence[Named],
    width: int,
    *,
    steps: int,
    every: int,
    draws: int,
    seed: int = 0,
) -> tuple[list[int], dict[str, list[float]]]:
    """The relative noise along one long trajectory without restarts.

    Args:
      make: as in `against_width`.
      named: the estimators, which must be unbiased.
      width: n.
      steps: T, a multiple of `every`.
      every: steps per measurement.
      draws: of every estimator.
      seed: of parameters, inputs and draws.

    Returns:
      The measured steps, counted from 1, and for every estimator the mean over draws at each.
    """
    along = _along(make, width, steps, seed)
    exact = estimators.rtrl()
    noisy = {one.name: _Draws(one.estimator, draws) for one in named}

    def push(carry: Any, xs: tuple[Linearization, Array]) -> tuple[Any, None]:
        truth, states = carry
        linearization, key = xs
        states = {
            name: own.push(states[name], linearization, jax.random.fold_in(key, i))
            for i, (name, own) in enumerate(noisy.items())
        }
        return (exact.push(truth, linearization, key), states), None

    def measure_noise(carry: Any, xs: tuple[Linearization, Array]) -> tuple[Any, dict[str, Array]]:
        (truth, states), _ = jax.lax.scan(push, carry, xs)
        influence = _flat(truth.influence)[0]
        total = jnp.sum(influence**2)
        errors = {
            name: own.squared_error(states[name], influence, along.structure) / total
            for name, own in noisy.items()
        }
        return (truth, states), errors

    @jax.jit
    def run(linearizations: Linearization) -> dict[str, Array]:
        first = {name: own.init(along.structure) for name, own in noisy.items()}
        keys = jax.random.split(jax.random.key(seed + 1), steps)
        chunks = jax.tree.map(
            lambda x: x.reshape(steps // every, every, *x.shape[1:]), (linearizations, keys)
        )
        return jax.lax.scan(measure_noise, (exact.init(along.structure), first), chunks)[1]

    noise = run(along.linearizations)
    times = [int(t) for t in range(every, steps + 1, every)]
    return times, {name: [float(x) for x in noise[name]] for name in noisy}


class _Draws(NamedTuple):
    """Independent draws of an estimator, which are pushed side by side.

    Attributes:
      estimator: of all of them.
      draws: their number.
    """

    estimator: InfluenceEstimator
    draws: int

    def init(self, structure: Structure) -> Any:
        """The states, stacked."""
        return jax.tree.map(
            lambda x: jnp.broadcast_to(x, (self.draws, *x.shape)), self.estimator.init(structure)
        )

    def push(self, states: Any, linearization: Linearization, key: Array) -> Any:
        """All states after a step, each with a key of its own."""
        keys = jax.random.split(key, self.draws)
        return jax.vmap(self.estimator.push, in_axes=(0, None, 0))(states, linearization, keys)

    def squared_error(self, states: Any, influence: Array, structure: Structure) -> Array:
        """The mean of |G~ - G|_F^2, one draw after another as they are large."""

        def of(state: Any) -> Array:
            return _squared_error(self.estimator, state, influence, structure)

        return jnp.mean(jax.lax.map(of, states))


def fit(rows: Sequence[Width], name: str) -> NoiseExponent:
    """The exponent of n in an estimator's noise, by a least-squares fit of the logarithms."""
    points = [row for row in rows if row.estimator == name]
    predicted = PREDICTED.get(name.split("(")[0])
    if any(row.relative_noise <= 0 for row in points):
        return NoiseExponent(None, None, predicted)
    widths, noises = [row.hidden_size for row in points], [row.relative_noise for row in points]
    return NoiseExponent(*power_law.exponent(widths, noises), predicted)


def drift(times: Sequence[int], curve: Sequence[float], span: int = 1000) -> Drift:
    """The mean noise in the first and in the last `span` steps."""
    first = [y for t, y in zip(times, curve) if t <= span]
    last = [y for t, y in zip(times, curve) if t > times[-1] - span]
    return Drift(float(np.mean(first)), float(np.mean(last)))


def markdown(theory: Theory) -> str:
    """The results as tables."""
    widths = list(dict.fromkeys(row.hidden_size for row in theory.widths))
    head = ["estimator", *(f"n = {n}" for n in widths), "slope", "predicted"]
    by_width = []
    for name, line in theory.fits.items():
        noise = [row for row in theory.widths if row.estimator == name]
        entries = [f"{row.relative_noise:.3g} ± {row.standard_error:.1g}" for row in noise]
        predicted = "-" if line.predicted is None else str(line.predicted)
        slope = "-" if line.slope is None else f"{line.slope:.2f} ± {line.standard_error:.2f}"
        by_width.append([name, *entries, slope, predicted])
    regimes = [
        [f"{r.hidden_size}", *(f"{x:.3f}" for x in (r.input_norm, r.derivative_norm, r.jacobian_norm,
                                                    r.largest_jacobian_norm))]
        for r in theory.regimes
    ]  # fmt: skip
    drifts = []
    for name, both in theory.drifts.items():
        ratio = f"{both.last / both.first:.2f}" if both.first > 0 else "-"
        drifts.append([name, f"{both.first:.3g}", f"{both.last:.3g}", ratio])
    return "\n".join(
        [
            f"Relative noise E|G~ - G|² / |G|² of the {theory.cell}.\n",
            table(head, by_width),
            table(["n", "|a| / √n", "|D| / √n", "|J|", "largest |J|"], regimes),
            f"Over {theory.times[-1]:,} steps at n = {theory.time_width}, means over a thousand steps:"
            "\n",
            table(["estimator", "first thousand", "last thousand", "last / first"], drifts),
        ]
    )


def as_dict(theory: Theory) -> Mapping[str, Any]:
    """The results as plain values for JSON."""
    return {
        **theory._asdict(),
        "widths": [row._asdict() for row in theory.widths],
        "regimes": [row._asdict() for row in theory.regimes],
        "fits": {name: x._asdict() for name, x in theory.fits.items()},
        "drifts": {name: x._asdict() for name, x in theory.drifts.items()},
    }


def _along(make: Callable[[int], Cell], width: int, steps: int, seed: int) -> Trajectory:
    return trajectory(
        make(width), input_size=width, batch_size=1, steps=steps, seed=seed, restart=False
    )


def _errors(
    estimator: InfluenceEstimator, along: Trajectory, influence: Array, draws: int, seed: int
) -> np.ndarray:
    """|G~ - G|_F^2 of every draw, computed one by one."""

    @jax.jit
    def one(key: Array, linearizations: Linearization, influence: Array) -> Array:
        state = push_all(estimator, along._replace(linearizations=linearizations), key)
        return _squared_error(estimator, state, influence, along.structure)

    keys = jax.random.split(jax.random.key(seed), draws)
    return np.array([float(one(key, along.linearizations, influence)) for key in keys])


def _squared_error(
    estimator: InfluenceEstimator, state: Any, influence: Array, structure: Structure
) -> Array:
    """|G~ - G|_F^2 for the influence [n, P] of a single lane, a few rows at a time."""
    n = structure.state_size
    rows = math.gcd(n, _ROWS)
    unit = jnp.eye(n, dtype=structure.dtype).reshape(n // rows, rows, 1, n)

    def part(xs: tuple[Array, Array]) -> Array:
        cotangents, exact = xs
        return jnp.sum((gradients(estimator, state, cotangents, structure) - exact) ** 2)

    return jnp.sum(jax.lax.map(part, (unit, influence.reshape(n // rows, rows, -1))))


def _flat(influence: Sequence[Array]) -> Array:
    """RTRL's G of all sites, [B, n, P]."""
    parts = [g.reshape(*g.shape[:2], -1) for g in influence]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)


def _regime(along: Trajectory, width: int) -> Regime:
    half = along.steps // 2
    late = jax.tree.map(lambda x: x[half:], along.linearizations)
    jacobian = jax.vmap(lambda j: j.dense())(late.jacobian)
    sizes = np.asarray(_spectral_norms(jacobian[:, 0]))
    inputs = sum(np.sum(np.square(s.inputs), axis=(1, 2, 3)) for s in late.sites)
    derivatives = sum(
        np.asarray(jax.vmap(lambda d: d.squared_norms())(s.derivatives))[:, 0, 0]
        for s in late.sites
    )
    return Regime(
        width,
        float(np.mean(np.sqrt(inputs / width))),
        float(np.mean(np.sqrt(derivatives / width))),
        float(np.mean(sizes)),
        float(np.max(sizes)),
    )


@jax.jit
def _spectral_norms(matrices: Array) -> Array:
    """The largest singular values of [k, n, n], by power iteration."""

    def multiply(_: int, v: Array) -> Array:
        v = jnp.einsum("kji,kj->ki", matrices, jnp.einsum("kij,kj->ki", matrices, v))
        return v / jnp.linalg.norm(v, axis=1, keepdims=True)

    v = jax.random.normal(jax.random.key(0), matrices.shape[:2], matrices.dtype)
    v = jax.lax.fori_loop(0, 300, multiply, v)
    return jnp.linalg.norm(jnp.einsum("kij,kj->ki", matrices, v), axis=1)
