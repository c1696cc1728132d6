"""A live stream: one call per sample, from Python, against the same steps inside one scan.

What a call costs beside its arithmetic is Python, the dispatch of a program and the transfer of its
inputs; the learner's state is donated and stays on the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kfrtrl_jax import cells, readouts
from kfrtrl_jax._src import xla
from kfrtrl_jax.base import Batch
from kfrtrl_jax.learning import Learner, make_learner
from kfrtrl_jax.studies.benchmarking import timing
from kfrtrl_jax.studies.benchmarking.timing import Floor, Measurement, Work


class StreamCase(NamedTuple):
    """A stream to measure.

    Attributes:
      estimator: as text.
      n: the cell's hidden size.
      batch: lanes.
      apart: whether `predict` and `update` are two calls.
      steps: samples per run.
    """

    estimator: str
    n: int
    batch: int
    apart: bool = False
    steps: int = 200

    @property
    def name(self) -> str:
        """Estimator and form."""
        return f"{self.estimator}, {'predict, update' if self.apart else 'step'}"


STREAM_SUITE = (
    StreamCase("kf_rtrl", 64, 1),
    StreamCase("kf_rtrl", 64, 1, apart=True),
    StreamCase("truncated", 64, 1),
)
_INPUTS, _CLASSES = 8, 4


def measure_stream(case: StreamCase, *, suite: str, rounds: int = 9) -> Measurement:
    """Measures a stream: every call waits for the prediction, as whoever acts on it would."""
    cell = cells.recurrent_highway(input_size=_INPUTS, hidden_size=case.n)
    learner = make_learner(
        cell,
        readouts.linear(input_size=case.n, output_size=_CLASSES),
        case.estimator,
        optax.adam(1e-3),
        batch_size=case.batch,
        example_input=jnp.zeros(_INPUTS),
        check=False,
    )
    generator = np.random.default_rng(0)
    samples = [
        (
            generator.normal(size=(case.batch, _INPUTS)).astype(np.float32),
            generator.integers(0, _CLASSES, case.batch).astype(np.int32),
        )
        for _ in range(case.steps)
    ]
    live = _apart(learner, samples) if case.apart else _together(learner, samples)
    floor = Floor("the same steps in one scan", _scanned(learner, samples))
    return timing.compare(
        live, floor, suite=suite, name=case.name, n=case.n, batch=case.batch, target=None,
        rounds=rounds,
    )  # fmt: skip


def _together(learner: Learner, samples: list[Any]) -> Work:
    step = xla.jit(learner.step, donate_argnums=0)
    state = [jax.jit(learner.init)(jax.random.key(0))]

    def run() -> Any:
        for x, y in samples:
            state[0], metrics = step(state[0], Batch(x, y))
            metrics.predictions.block_until_ready()
        return state[0].carry

    return Work(run, len(samples))


def _apart(learner: Learner, samples: list[Any]) -> Work:
    predict, update = xla.jit(learner.predict), xla.jit(learner.update, donate_argnums=0)
    state = [jax.jit(learner.init)(jax.random.key(0))]

    def run() -> Any:
        for x, y in samples:
            predictions, pending = predict(state[0], x)
            predictions.block_until_ready()
            state[0], _ = update(state[0], pending, y)
        return state[0].carry

    return Work(run, len(samples))


def _scanned(learner: Learner, samples: list[Any]) -> Work:
    def all_steps(state: Any, data: Batch) -> Any:
        return jax.lax.scan(lambda s, batch: (learner.step(s, batch)[0], None), state, data)[0]

    scan = xla.jit(all_steps, donate_argnums=0)
    state = [jax.jit(learner.init)(jax.random.key(0))]
    data = Batch(*(jnp.stack(column) for column in zip(*samples)))

    def run() -> Any:
        state[0] = scan(state[0], data)
        return state[0].carry

    return Work(run, len(samples))
