"""What a training step's time is spent on: the same steps without a part of the estimator.

In blocks of K steps with an update at every step, a step backpropagates exactly along up to K kept
steps, pulls the influence before them, and a K-th of it is a push.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kfrtrl_jax._src import xla
from kfrtrl_jax.base import Array, Batch, InfluenceEstimator, Key, SiteGradients
from kfrtrl_jax.cells import recurrent_highway
from kfrtrl_jax.estimators import ESTIMATORS, truncated
from kfrtrl_jax.learning import make_learner
from kfrtrl_jax.readouts import linear
from kfrtrl_jax.studies.benchmarking import timing
from kfrtrl_jax.studies.benchmarking.timing import Floor, Measurement, Work

INPUTS, OUTPUTS = 4, 4

Left = Literal["the push", "the pull", "both"]


class Part(NamedTuple):
    """Steps of the recurrent highway network without a part of its estimator, beside whole ones.

    Attributes:
      estimator: our name for it.
      n: units.
      batch: lanes.
      segment_length: K.
      without: what is left out; without both it is truncation to the last steps.
      arguments: of the estimator.
    """

    estimator: str
    n: int
    batch: int
    segment_length: int
    without: Left
    arguments: Mapping[str, Any] = MappingProxyType({})

    @property
    def name(self) -> str:
        """Estimator and what is left out."""
        own = timing.called(self.estimator, self.arguments)
        return f"{own} K={self.segment_length} U=1 without {self.without}"


PARTS_SUITE = tuple(
    Part(estimator, n, batch, length, without, arguments)
    for estimator, n, batch, length, arguments in (
        ("kf_rtrl", 128, 16, 8, {}),
        ("kf_rtrl", 256, 32, 8, {}),
        ("ok", 128, 16, 8, {"rank": 16}),
        ("ok", 128, 16, 16, {"rank": 16}),
        ("uoro", 256, 32, 16, {}),
        ("snap", 256, 32, 16, {}),
    )
    for without in ("the push", "the pull", "both")
)


def measure_part(part: Part, *, suite: str, rounds: int = 9, steps: int = 96) -> Measurement:
    """The time of steps without the part over that of whole steps."""
    whole = ESTIMATORS[part.estimator](**part.arguments)
    return timing.compare(
        _work(part, _less(whole, part.without), steps),
        Floor("the whole step", _work(part, whole, steps)),
        suite=suite,
        name=part.name,
        n=part.n,
        batch=part.batch,
        target=None,
        rounds=rounds,
        segment_length=part.segment_length,
        update_every=1,
    )


def _less(estimator: InfluenceEstimator, without: Left) -> InfluenceEstimator:
    if without == "both":
        return truncated()

    def push(state: Any, linearization: Any, key: Key) -> Any:
        del linearization, key
        return state

    def pull(state: Any, cotangent: Array) -> SiteGradients:
        shapes = jax.eval_shape(estimator.pull, state, cotangent)
        # What makes the cotangent must not be left out too.
        nothing = 0 * jnp.sum(cotangent)
        return tuple(jnp.full(x.shape, nothing, x.dtype) for x in shapes)

    return estimator._replace(**({"push": push} if without == "the push" else {"pull": pull}))


def _work(part: Part, estimator: InfluenceEstimator, steps: int) -> Work:
    """Training on a sequence of random numbers."""
    length = part.segment_length
    learner = make_learner(
        recurrent_highway(input_size=INPUTS, hidden_size=part.n),
        linear(input_size=part.n, output_size=OUTPUTS),
        estimator,
        optax.adam(1e-3),
        batch_size=part.batch,
        example_input=jnp.zeros(INPUTS),
        segment_length=length,
        update_every=1,
        loss=lambda prediction, target: jnp.sum((prediction - target) ** 2),
        check=False,
    )
    keys = jax.random.split(jax.random.key(0), 3)
    count = -(-steps // length)
    shape = (count, length, part.batch)
    segments = Batch(
        jax.random.normal(keys[0], (*shape, INPUTS)), jax.random.normal(keys[1], (*shape, OUTPUTS))
    )
    train = xla.jit(
        lambda state, segments: jax.lax.scan(learner.step, state, segments), donate_argnums=0
    )
    return timing.resumed(
        lambda state: train(state, segments), learner.init(keys[2]), count * length
    )
