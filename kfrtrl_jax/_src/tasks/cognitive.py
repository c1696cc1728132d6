"""Trials of cognitive experiments, with the names, epochs and times of NeuroGym.

NeuroGym (Molano-Mazón et al., 2022: NeuroGym: An open resource for developing and sharing neuroscience
tasks) is a collection of environments for reinforcement learning. Here the right action is the target
of every time step, and a trial always lasts until the end of its decision epoch. Times are in
milliseconds; an epoch has its time divided by dt steps, rounded down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import Array, Batch, Key, Task
from kfrtrl_jax._src.lanes import along
from kfrtrl_jax._src.losses import accuracy, cross_entropy
from kfrtrl_jax._src.shapes import require_positive
from kfrtrl_jax._src.tasks.common import entropy, following, vectors
from kfrtrl_jax._src.tasks.random_words import below, normal, uniform, words

FIXATE = 0
COHERENCES = np.array([5, 15, 50])


class DelayedMatchState(NamedTuple):
    """Each lane's place in its trial.

    Attributes:
      position: [B], of the previous time step, counted from 0.
      stimulus: [B], which angle of the ring is the sample's.
      choice: [B], 1 for a match and 2 for none.
    """

    position: Array
    stimulus: Array
    choice: Array


class ContextIntegrationState(NamedTuple):
    """Each lane's place in its trial.

    Attributes:
      position: [B], of the previous time step, counted from 0.
      delay: [B], steps of the delay epoch.
      context: [B], 0 or 1: which modality decides.
      choices: [B, 2], what each modality shows, 0 to dim_ring - 1.
      coherences: [B, 2], of each modality, in percent.
    """

    position: Array
    delay: Array
    context: Array
    choices: Array
    coherences: Array


def delayed_match(
    *,
    batch_size: int,
    dt: int = 100,
    fixation: int = 300,
    sample: int = 500,
    delay: int = 1000,
    test: int = 500,
    decision: int = 900,
    sigma: float = 1.0,
    dim_ring: int = 2,
    every_step: bool = False,
) -> Task:
    """Whether a test stimulus is the same as a sample stimulus shown before a delay.

    This is DelayMatchSample-v0 of NeuroGym 2.3, after Miller, Erickson and Desimone (1996). A trial
    has the epochs fixation, sample, delay, test and decision. Inputs are [1 + dim_ring]: fixation,
    1 in all epochs but the decision; and the stimulus, in the sample and test epochs 0.5 + 0.5
    cos(theta - angle) for dim_ring angles theta equally spaced on a circle, with Gaussian noise of
    standard deviation sigma / sqrt(dt), and 0 in the others. The sample is one of these angles, and
    the test is the same in half of the trials and opposite otherwise. Labels are 0 to fixate, in
    all epochs but the decision, and 1 for a match or 2 for none in the decision epoch.

    The score is the accuracy over the steps whose losses count: in the decision epoch, unless
    every_step is set. Chance is the loss of the best constant prediction, 1 bit in the decision
    epoch. Trials follow each other without gaps, and all lanes start theirs together.

    Args:
      batch_size: B, the number of lanes.
      dt: milliseconds of a time step.
      fixation: milliseconds of this epoch, and so on.
      sample: as above.
      delay: as above; it may have no step.
      test: as above.
      decision: as above.
      sigma: of the noise; 0 for none.
      dim_ring: the number of stimulus inputs.
      every_step: whether the losses of all epochs count, or only those of the decision.

    Raises:
      ValueError: if batch_size, dt or dim_ring is less than 1, sigma or the delay is negative or
        another epoch is shorter than one step.
    """
    require_positive(batch_size=batch_size, dt=dt, dim_ring=dim_ring)
    bounds.require("[0, inf)", sigma=sigma)
    _require_steps(dt, delay, fixation=fixation, sample=sample, test=test, decision=decision)
    steps = [time // dt for time in (fixation, sample, delay, test, decision)]
    sample_start, delay_start, test_start, decision_start, length = np.cumsum(steps).tolist()
    angles = _angles(dim_ring)

    def init(key: Key) -> DelayedMatchState:
        del key
        zeros = jnp.zeros(batch_size, jnp.int32)
        return DelayedMatchState(zeros + (length - 1), zeros, zeros + 1)

    def advance(state: DelayedMatchState, key: Key) -> tuple[DelayedMatchState, Batch]:
        drawn = words(key, batch_size, 2 + dim_ring)
        position = following(state.position, length)
        reset = position == 0
        stimulus = jnp.where(reset, below(drawn[:, 0], dim_ring), state.stimulus)
        choice = jnp.where(reset, 1 + below(drawn[:, 1], 2), state.choice)

        testing = (position >= test_start) & (position < decision_start)
        shown = testing | ((position >= sample_start) & (position < delay_start))
        angle = angles[stimulus] + jnp.where(testing & (choice == 2), math.pi, 0)
        clean = 0.5 + 0.5 * jnp.cos(angles - angle[:, None])
        noise = sigma / math.sqrt(dt) * normal(drawn[:, 2:])
        seen = jnp.where(shown[:, None], clean + noise, 0)
        deciding = position >= decision_start
        batch = Batch(
            inputs=jnp.concatenate([~deciding[:, None], seen], axis=1),
            targets=jnp.where(deciding, choice, FIXATE),
            reset=reset,
            weight=None if every_step else deciding.astype(float),
        )
        return DelayedMatchState(position, stimulus, choice), batch

    waiting = length - steps[-1] if every_step else 0
    frequencies = [waiting, steps[-1] / 2, steps[-1] / 2]
    return _labelled(batch_size, 1 + dim_ring, frequencies, init, advance)


def context_integration(
    *,
    batch_size: int,
    dt: int = 100,
    fixation: int = 300,
    stimulus: int = 750,
    delay_mean: int = 600,
    delay_min: int = 300,
    delay_max: int = 3000,
    decision: int = 100,
    sigma: float = 1.0,
    dim_ring: int = 2,
    every_step: bool = False,
) -> Task:
    """Decides by one of two noisy stimuli; a context says which.

    This is ContextDecisionMaking-v0 of NeuroGym 2.3 with its explicit context, after Mante et al.
    (2013). A trial has the epochs fixation, stimulus, delay and decision. The delay is drawn anew
    for every trial, exponentially distributed with this mean between its bounds. Inputs are [3 + 2
    dim_ring]: fixation, 1 in the fixation epoch alone; the stimuli of modality 1 and then 2, each
    [dim_ring], in the stimulus epoch 0.5 + c / 200 cos(theta - angle) for angles theta equally
    spaced on a circle, with Gaussian noise of standard deviation sigma / sqrt(dt), and 0 in the
    others; and the context, (1, 0) or (0, 1) for the modality that decides, in all epochs. Each
    modality shows one of these angles with a coherence c of 5, 15 or 50 percent, all of it drawn
    independently and uniformly. Labels are 0 to fixate, in all epochs but the decision, and in the
    decision epoch the number of the deciding modality's angle, from 1.

    The score is the accuracy over the steps whose losses count: in the decision epoch, unless
    every_step is set. Chance is the loss of the best constant prediction, log2(dim_ring) bits in
    the decision epoch. Trials follow each other without gaps.

    Args:
      batch_size: B, the number of lanes.
      dt: milliseconds of a time step.
      fixation: milliseconds of this epoch, and so on.
      stimulus: as above; the published 750 are 7 steps of 100.
      delay_mean: milliseconds, of the exponential distribution without bounds.
      delay_min: milliseconds, the lower bound.
      delay_max: milliseconds, the upper bound; the delay of all trials if not above delay_min.
      decision: as above.
      sigma: of the noise; 0 for none.
      dim_ring: the number of angles, choices and inputs of each modality.
      every_step: whether the losses of all epochs count, or only those of the decision.

    Raises:
      ValueError: if batch_size, dt, dim_ring or delay_mean is less than 1, sigma or a bound of the
        delay is negative or another epoch is shorter than one step.
    """
    require_positive(batch_size=batch_size, dt=dt, dim_ring=dim_ring, delay_mean=delay_mean)
    bounds.require("[0, inf)", sigma=sigma)
    _require_steps(
        dt, min(delay_min, delay_max), fixation=fixation, stimulus=stimulus, decision=decision
    )
    stimulus_start, delay_start = np.cumsum([fixation // dt, stimulus // dt]).tolist()
    final = decision // dt
    angles = _angles(dim_ring)
    lowest, highest = (math.exp(-time / delay_mean) for time in (delay_max, delay_min))

    def delay_steps(drawn: Array) -> Array:
        if delay_min >= delay_max:
            return jnp.full(batch_size, delay_max // dt, jnp.int32)
        # The inverse of the distribution function between the bounds.
        time = -delay_mean * jnp.log(highest - uniform(drawn) * (highest - lowest))
        return jnp.clip(time // dt, delay_min // dt, delay_max // dt).astype(jnp.int32)

    def init(key: Key) -> ContextIntegrationState:
        del key
        zeros = jnp.zeros(batch_size, jnp.int32)
        pairs = jnp.zeros((batch_size, 2), jnp.int32)
        last = zeros + (delay_start + final - 1)
        return ContextIntegrationState(last, zeros, zeros, pairs, pairs)

    def advance(state: ContextIntegrationState, key: Key) -> tuple[ContextIntegrationState, Batch]:
        drawn = words(key, batch_size, 6 + 2 * dim_ring)
        position = following(state.position, delay_start + state.delay + final)
        reset = position == 0

        def at_start(new: Array, old: Array) -> Array:
            return jnp.where(along(reset, old), new, old)

        delay = at_start(delay_steps(drawn[:, 0]), state.delay)
        context = at_start(below(drawn[:, 1], 2), state.context)
        choices = at_start(below(drawn[:, 2:4], dim_ring), state.choices)
        coherences = at_start(
            jnp.asarray(COHERENCES, jnp.int32)[below(drawn[:, 4:6], len(COHERENCES))],
            state.coherences,
        )

        shown = (position >= stimulus_start) & (position < delay_start)
        cosines = jnp.cos(angles - angles[choices][..., None])
        clean = 0.5 + coherences[..., None] / 200 * cosines
        noise = sigma / math.sqrt(dt) * normal(drawn[:, 6:])
        seen = jnp.where(shown[:, None], clean.reshape(batch_size, -1) + noise, 0)
        fixating = position < stimulus_start
        of_context = context[:, None] == jnp.arange(2)
        deciding = position >= delay_start + delay
        right = 1 + jnp.take_along_axis(choices, context[:, None], axis=1)[:, 0]
        batch = Batch(
            inputs=jnp.concatenate([fixating[:, None], seen, of_context], axis=1),
            targets=jnp.where(deciding, right, FIXATE),
            reset=reset,
            weight=None if every_step else deciding.astype(float),
        )
        new = ContextIntegrationState(position, delay, context, choices, coherences)
        return new, batch

    waiting = 0.0
    if every_step:
        waiting = delay_start + _mean_delay_steps(dt, delay_mean, delay_min, delay_max)
    frequencies = [waiting, *[final / dim_ring] * dim_ring]
    return _labelled(batch_size, 3 + 2 * dim_ring, frequencies, init, advance)


def _labelled(
    batch_size: int,
    input_size: int,
    frequencies: list[float],
    init: Callable[[Array], Any],
    advance: Callable[[Any, Array], tuple[Any, Batch]],
) -> Task:
    """A task whose labels have these relative frequencies among the steps that count."""
    return Task(
        batch_size=batch_size,
        **vectors(input_size, len(frequencies)),
        loss=cross_entropy(),
        chance_loss=entropy(frequencies),
        init=init,
        sample=advance,
        score=accuracy(),
    )


def _angles(count: int) -> Array:
    """Equally spaced angles on the circle, from 0."""
    return 2 * math.pi / count * jnp.arange(count)


def _mean_delay_steps(dt: int, mean: int, low: int, high: int) -> float:
    """Of the time between the bounds divided by dt and rounded down."""
    if low >= high:
        return high // dt
    times = dt * np.arange(1, high // dt + 1)
    survival = np.exp(-np.maximum(times, low) / mean) - math.exp(-high / mean)
    return float(np.sum(survival) / (math.exp(-low / mean) - math.exp(-high / mean)))


def _require_steps(dt: int, delay: int, **epochs: int) -> None:
    """Refuses epochs shorter than one step of dt, and a negative delay.

    Raises:
      ValueError: naming the first of them.
    """
    for name, time in epochs.items():
        if time < dt:
            raise ValueError(f"{name} must be at least one step of {dt} ms, got {time} ms")
    bounds.require("[0, inf)", delay=delay)
