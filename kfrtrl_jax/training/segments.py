"""What kinds of experiments have in common: a run as segments of time steps, and their sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from kfrtrl_jax import learning, linearization
from kfrtrl_jax._src.optimizers import rate_in
from kfrtrl_jax.base import Array, Batch, Structure
from kfrtrl_jax.training import evaluation

DECAY = 0.999


class RunState(NamedTuple):
    """All that a run carries from one segment to the next.

    Attributes:
      learner: the learner's state.
      task: the task's state.
      losses: [K], of the last segment's time steps; empty if the task does not depend on them.
      key: a PRNG key.
      step: time steps so far.
      running_loss: exponential average of the loss over time steps.
      skipped: how many segments were dropped because of numbers that are not finite; empty if such
        numbers stop the run.
    """

    learner: learning.LearnerState
    task: Any
    losses: Array
    key: Array
    step: Array
    running_loss: Array
    skipped: Any = ()


class Sums(NamedTuple):
    """Sums over a segment's steps and lanes.

    Attributes:
      loss: weighted, as reported.
      weight: of the losses.
      score: weighted.
      score_weight: of the scores.
      gradient_norm: of the segment's step; a mean, not a sum.
      counts: 1, or 0 for a segment that was dropped, whose other sums are 0.
    """

    loss: Array
    weight: Array
    score: Array
    score_weight: Array
    gradient_norm: Array
    counts: Any = 1.0


class Words(NamedTuple):
    """What a run's figures are called.

    Attributes:
      unit: of the loss.
      score: the name of the score; None if it is the loss.
      higher_is_better: whether a higher score is.
    """

    unit: str = ""
    score: str | None = None
    higher_is_better: bool = True


class About(NamedTuple):
    """What does not change during a run.

    Attributes:
      evaluate: (parameters, stream) -> totals, see `evaluation.totals`.
      structure: of the cell, as passed to its estimator.
      words: what the figures are called.
      held_out: streams to evaluate on, see `Task`.
      check: compares the cell's linearization with `jax.vjp`, see `linearization.check`.
      data: the digest of the data that the task reads; "" for a generated one.
      init_from: the digest of the parameters that the run starts from; "" for its own.
    """

    evaluate: Callable[[dict[str, Any], Batch], evaluation.Totals]
    structure: Structure
    words: Words
    held_out: Mapping[str, Batch]
    check: Callable[[], linearization.Check]
    data: str = ""
    init_from: str = ""


class Segments(NamedTuple):
    """A run as pure functions of its state.

    Attributes:
      init: key -> state.
      advance: state -> (state, sums): one segment.
      metrics: state -> the task's named scalars, how many segments were skipped, and the learning
        rate that a schedule gives.
      diagnostics: state -> those of the estimator.
      about: what does not change.
      limit: a running loss above it means that the run has failed.
      settled: state -> the same without what the next segment will drop as not finite.
    """

    init: Callable[[Any], RunState]
    advance: Callable[[RunState], tuple[RunState, Sums]]
    metrics: Callable[[RunState], dict[str, Array]]
    diagnostics: Callable[[RunState], dict[str, Array]]
    about: About
    limit: float = math.inf
    settled: Callable[[RunState], RunState] = lambda state: state


def learning_rate(state: RunState) -> dict[str, Array]:
    """The learning rate of the last update by its name, if a schedule gives it."""
    rate = rate_in(state.learner.optimizer_state)
    return {} if rate is None else {"learning_rate": rate}


def mean(total: Array, weight: Array) -> Array:
    """The weighted mean of segments; NaN where nothing counts."""
    return jnp.sum(total) / jnp.sum(weight)


def averaged(running_loss: Array, losses: Array, weights: Array) -> Array:
    """The running loss after steps of losses [K]; those of weight 0 leave it as it is."""
    counted = (weights > 0).astype(running_loss.dtype)
    later = jnp.sum(counted) - jnp.cumsum(counted)
    shares = (1 - DECAY) * DECAY**later * counted
    return DECAY ** jnp.sum(counted) * running_loss + shares @ losses
