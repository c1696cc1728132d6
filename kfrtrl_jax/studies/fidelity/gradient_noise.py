"""The noise of the whole gradient of an update, against the number of steps pushed at once.

With an update at every step (U = 1), the gradient of a loss is exact along the steps of its own
segment. The longer the segment, the less of the gradient is left to the estimator, and the fewer pushes
have added noise to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kfrtrl_jax import readouts
from kfrtrl_jax.base import Array, Batch, Cell, InfluenceEstimator
from kfrtrl_jax.estimators import rtrl
from kfrtrl_jax.learning import make_learner


class Noise(NamedTuple):
    """One estimator at one segment length.

    Attributes:
      estimator: its name.
      segment_length: K.
      relative_noise: E|g~ - g|^2 / |g|^2 of the cell's part of the gradient, with numerator and
        denominator each summed over the second half of the steps.
      standard_error: of that, over draws.
    """

    estimator: str
    segment_length: int
    relative_noise: float
    standard_error: float


def measure_noise(
    cell: Cell,
    estimators: Mapping[str, InfluenceEstimator],
    segment_lengths: Sequence[int],
    *,
    input_size: int,
    batch_size: int,
    steps: int,
    draws: int,
    seed: int = 0,
) -> list[Noise]:
    """Measures the noise of each estimator at each segment length, parameters held fixed.

    Args:
      cell: a cell that reads vectors of length `input_size` and outputs a vector.
      estimators: by name.
      segment_lengths: K; each divides the number of steps.
      input_size: of the inputs, standard normal.
      batch_size: B.
      steps: T.
      draws: of each estimator.
      seed: of parameters, inputs, targets and draws.
    """
    keys = jax.random.split(jax.random.key(seed), 4)
    inputs = jax.random.normal(keys[0], (steps, batch_size, input_size))
    targets = jax.random.randint(keys[1], (steps, batch_size), 0, input_size)
    batches = Batch(inputs, targets, jnp.zeros((steps, batch_size), bool))
    output_size = jax.eval_shape(
        lambda key: cell.step(cell.init(key), cell.initial_carry(), inputs[0, 0])[1], keys[2]
    ).shape[0]
    readout = readouts.linear(input_size=output_size, output_size=input_size)

    def gradients(estimator: InfluenceEstimator, length: int) -> Any:
        """A function of a key: the cell's gradients at every step of the second half, [T / 2, P]."""
        learner = make_learner(
            cell,
            readout,
            estimator,
            optax.sgd(0.0),
            batch_size=batch_size,
            example_input=inputs[0, 0],
            segment_length=length,
            update_every=1,
            check=False,
        )
        segments = jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), batches)

        def run(key: Array) -> Array:
            def one(state: Any, segment: Batch) -> tuple[Any, Array]:
                gradient, state, _ = learner.gradient(state, segment)
                leaves = jax.tree.leaves(gradient["cell"])
                lead = (length,) if length > 1 else (1,)
                flat = [leaf.reshape(*lead, -1) for leaf in leaves]
                return state, jnp.concatenate(flat, axis=1)

            state = learner.init(keys[3])._replace(key=key)
            found = jax.lax.scan(one, state, segments)[1]
            return found.reshape(steps, -1)[steps // 2 :]

        return jax.jit(run)

    exact = gradients(rtrl(), 1)(keys[3])
    size = float(jnp.sum(exact**2))
    rows = []
    for name, estimator in estimators.items():
        for length in segment_lengths:
            run = gradients(estimator, length)
            off = [
                float(jnp.sum((run(key) - exact) ** 2)) / size
                for key in jax.random.split(jax.random.key(seed + 1), draws)
            ]
            error = float(np.std(off, ddof=1)) / np.sqrt(draws)
            rows.append(Noise(name, length, float(np.mean(off)), float(error)))
    return rows


def markdown(rows: Sequence[Noise]) -> str:
    """A table with a line per estimator and a column per segment length."""
    lengths = list(dict.fromkeys(row.segment_length for row in rows))
    lines = [["", *(f"K = {length}" for length in lengths)], ["---"] * (1 + len(lengths))]
    for name in dict.fromkeys(row.estimator for row in rows):
        of_name = {row.segment_length: row for row in rows if row.estimator == name}
        cells = [of_name[length] for length in lengths]
        lines.append([name, *(f"{r.relative_noise:.3g} ± {r.standard_error:.1g}" for r in cells)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
