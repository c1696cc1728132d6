"""Prediction problems of animal learning (Rafiee et al., 2022): what follows a stimulus, and when.

A trial begins with the conditioned stimuli (CS), each of which is on for 4 steps. The unconditioned
stimulus (US) may follow: it is on for 2 steps and begins the inter-stimulus interval (ISI) after
the CS. The next trial begins the inter-trial interval (ITI) after the beginning of the US, whether
or not there was one. Both intervals are drawn uniformly for every trial.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import Array, Batch, Key, Score, Task
from kfrtrl_jax._src.lanes import along
from kfrtrl_jax._src.losses import temporal_difference
from kfrtrl_jax._src.shapes import require_key, require_positive
from kfrtrl_jax._src.tasks.common import bootstrapped, vectors

CS_STEPS, US_STEPS, DISTRACTOR_STEPS = 4, 2, 4
# Poisson distractor i, while it is off, begins with this probability per step.
DISTRACTOR_RATES = tuple(1 / mean for mean in range(10, 110, 10))
# What the later trials, which are not drawn yet, can contribute to a return.
_REMAINDER = 1e-9


class Trials(NamedTuple):
    """Trials of every lane, in order: axes [B, M], or [B] for one trial per lane.

    Attributes:
      isi: steps from the beginning of the CS to that of the US.
      length: steps from the beginning of the CS to that of the next trial's.
      rewarded: whether the US follows.
      stimuli: [..., S], which stimuli begin with the trial: the CS, then distractors.
    """

    isi: Array
    length: Array
    rewarded: Array
    stimuli: Array


class ConditioningState(NamedTuple):
    """What every lane observes, and the trials that are to come.

    Attributes:
      trials: this trial and M - 1 more, [B, M].
      time: [B], steps since the beginning of this trial.
      ages: [B, D], how long each Poisson distractor has been on; 0 if it is off.
      observation: [B, 1 + S + D], of this step.
      started: whether a step has been made.
    """

    trials: Trials
    time: Array
    ages: Array
    observation: Array
    started: Array


class _Protocol(NamedTuple):
    """What differs between the problems.

    Attributes:
      isi: the shortest and the longest ISI.
      iti: the shortest and the longest ITI.
      stimuli: S.
      draws: the number of uniform numbers per trial.
      contents: uniform numbers [..., draws] -> (rewarded [...], stimuli [..., S]).
      distractors: D, the number of Poisson distractors.
      rate: the fraction of the trials with a US.
    """

    isi: tuple[int, int]
    iti: tuple[int, int]
    stimuli: int
    draws: int
    contents: Callable[[Array], tuple[Array, Array]]
    distractors: int
    rate: float

    @property
    def gamma(self) -> float:
        """The discount of the return: 1 - 1 / the mean ISI."""
        return 1 - 2 / sum(self.isi)


def trace_conditioning(
    *,
    batch_size: int,
    isi: int = 10,
    min_iti: int = 80,
    max_iti: int = 120,
    num_distractors: int = 10,
) -> Task:
    """Predicts the US from a CS that ended some steps before, among distractors.

    Every trial has the CS and the US. The ISI is uniform in isi - isi // 3 .. isi + isi // 3, which
    is 7..13 by default, and the ITI in 80..120. Distractor i of 1..10 begins, while it is off, with
    probability 1 / (10 i) per step; it is on for 4 steps and then off for one at least.

    The observation is [US, CS, distractors], each 0 or 1; the input is this step's and the next
    one's, for TD(0). What is to be predicted is the return G_t = c_{t+1} + gamma c_{t+2} + ...,
    where c is the US, and gamma = 1 - 1 / isi. The target is (c_{t+1}, gamma, G_t). The loss is the
    mean square TD error, 0.018 for a prediction of 0, and the score the mean square of prediction -
    G_t (MSRE), 0.18 for a prediction of 0 and 0.15 for the mean return. Returns contain all trials
    to within 1e-9. Each lane begins at a random step of a trial, the published
    program at the first, and never starts anew.

    Args:
      batch_size: B.
      isi: the mean ISI.
      min_iti: the shortest ITI.
      max_iti: the longest ITI.
      num_distractors: up to 10.

    Raises:
      ValueError: if batch_size is less than 1, isi less than 2, min_iti less than 4 or greater than
        max_iti, or num_distractors not in 0..10.

    Source: Rafiee, Abbas, Ghiassian, Kumaraswamy, Sutton, Ludvig and White, "From eye-blinks to
    state construction: Diagnostic benchmarks for online representation learning", 2022,
    arXiv:2011.04590, and its published program.
    """
    if not 0 <= num_distractors <= len(DISTRACTOR_RATES):
        raise ValueError(
            f"num_distractors must be in 0..{len(DISTRACTOR_RATES)}, got {num_distractors}"
        )

    def contents(uniform: Float[Array, "*trials draws"]) -> tuple[Array, Array]:
        always = jnp.ones(uniform.shape[:-1], bool)
        return always, always[..., None]

    protocol = _Protocol(
        isi=_around(isi),
        iti=(min_iti, max_iti),
        stimuli=1,
        draws=0,
        contents=contents,
        distractors=num_distractors,
        rate=1.0,
    )
    return _task(protocol, batch_size)


def trace_patterning(
    *,
    batch_size: int,
    isi: int = 10,
    min_iti: int = 80,
    max_iti: int = 120,
    num_cs: int = 6,
    num_patterns: int = 10,
    num_distractors: int = 5,
    noise: float = 0.0,
    pattern_seed: int = 0,
) -> Task:
    """Predicts the US from a pattern of stimuli that ended some steps before.

    The US follows if the CS that are on form an activation pattern. Activation patterns are sets of
    half of the CS, drawn once. Half of the trials have one; the others have a random subset of the
    CS. With probability `noise` it is the other way round: the US follows no activation pattern, or
    does not follow one. Each distractor begins with the trial, with probability 1/2, and is on for
    4 steps as the CS are.

    Intervals, inputs, targets, loss and score are those of `trace_conditioning`; the observation is
    [US, CS, distractors]. With half of the trials rewarded, the loss of a prediction of 0 is 0.009,
    its score 0.09. The numbers of stimuli are arguments of the published program, without defaults
    there; those here are a choice of this library.

    Args:
      batch_size: B.
      isi: the mean ISI.
      min_iti: the shortest ITI.
      max_iti: the longest ITI.
      num_cs: the number of CS.
      num_patterns: the number of activation patterns.
      num_distractors: the number of distractors.
      noise: how often the US contradicts the pattern.
      pattern_seed: of the choice of activation patterns.

    Raises:
      ValueError: if a size is impossible: batch_size less than 1, isi or num_cs less than 2,
        min_iti less than 4 or greater than max_iti, num_distractors or pattern_seed less than 0, or
        more patterns than there are sets of half of the CS; or if noise is not in [0, 1].

    Source: Rafiee et al., 2022, arXiv:2011.04590; see `trace_conditioning`.
    """
    stimuli = (num_cs, num_patterns, num_distractors, pattern_seed)
    protocol = _patterning(_around(isi), (min_iti, max_iti), *stimuli, noise)
    return _task(protocol, batch_size)


def noisy_patterning(
    *,
    batch_size: int,
    min_iti: int = 80,
    max_iti: int = 120,
    num_cs: int = 6,
    num_patterns: int = 10,
    num_distractors: int = 5,
    noise: float = 0.1,
    pattern_seed: int = 0,
) -> Task:
    """Predicts the US from a pattern of stimuli that it follows at once, most of the time.

    `trace_patterning` with an ISI of 4 steps, so that the US begins when the CS end, gamma = 1 -
    1/4, and noise. The loss of a prediction of 0 is 0.01, its score 0.04.

    Args:
      batch_size: B.
      min_iti: the shortest ITI.
      max_iti: the longest ITI.
      num_cs: the number of CS.
      num_patterns: the number of activation patterns.
      num_distractors: the number of distractors.
      noise: how often the US contradicts the pattern.
      pattern_seed: of the choice of activation patterns.

    Raises:
      ValueError: see `trace_patterning`.

    Source: Rafiee et al., 2022, arXiv:2011.04590; see `trace_conditioning`.
    """
    stimuli = (num_cs, num_patterns, num_distractors, pattern_seed)
    protocol = _patterning((CS_STEPS, CS_STEPS), (min_iti, max_iti), *stimuli, noise)
    return _task(protocol, batch_size)


def activation_patterns(
    num_cs: int, num_patterns: int, seed: int
) -> Bool[np.ndarray, "patterns num_cs"]:
    """Different sets of num_cs // 2 of the CS, chosen at random.

    Raises:
      ValueError: if there are fewer, or if an argument is too small.
    """
    bounds.require("[2, inf)", num_cs=num_cs)
    most = math.comb(num_cs, num_cs // 2)
    if not 1 <= num_patterns <= most:
        raise ValueError(
            f"num_patterns must be in 1..{most}, as many as there are sets of half of {num_cs} CS, "
            f"got {num_patterns}"
        )
    bounds.require("[0, inf)", pattern_seed=seed)
    sets = list(itertools.combinations(range(num_cs), num_cs // 2))
    chosen = np.random.default_rng(seed).choice(most, num_patterns, replace=False)
    patterns = np.zeros((num_patterns, num_cs), bool)
    for row, index in enumerate(chosen):
        patterns[row, list(sets[index])] = True
    return patterns


def _patterning(
    isi: tuple[int, int],
    iti: tuple[int, int],
    num_cs: int,
    num_patterns: int,
    num_distractors: int,
    seed: int,
    noise: float,
) -> _Protocol:
    patterns = jnp.asarray(activation_patterns(num_cs, num_patterns, seed))
    bounds.require("[0, inf)", num_distractors=num_distractors)
    bounds.require("[0, 1]", noise=noise)
    # A random subset may be an activation pattern as well: together they are half of the trials.
    subsets = 2**num_cs
    chosen = (subsets / 2 - num_patterns) / (subsets - num_patterns)

    def contents(uniform: Float[Array, "*trials draws"]) -> tuple[Array, Array]:
        contradicted = uniform[..., 0] < noise
        pattern = patterns[_integer(uniform[..., 2], 0, num_patterns - 1)]
        half = uniform[..., 3:] < 0.5
        cs = jnp.where(uniform[..., 1:2] < chosen, pattern, half[..., :num_cs])
        active = jnp.any(jnp.all(cs[..., None, :] == patterns, axis=-1), axis=-1)
        return active ^ contradicted, jnp.concatenate([cs, half[..., num_cs:]], axis=-1)

    return _Protocol(
        isi=isi,
        iti=iti,
        stimuli=num_cs + num_distractors,
        draws=3 + num_cs + num_distractors,
        contents=contents,
        distractors=0,
        rate=0.5,
    )


def _task(protocol: _Protocol, batch_size: int) -> Task:
    require_positive(batch_size=batch_size)
    (min_isi, max_isi), (min_iti, max_iti) = protocol.isi, protocol.iti
    if not CS_STEPS <= min_iti <= max_iti:
        raise ValueError(
            f"min_iti must be at least {CS_STEPS} and at most max_iti, got {min_iti} and {max_iti}"
        )
    count = _trials_ahead(protocol)
    rates = jnp.array(DISTRACTOR_RATES[: protocol.distractors], jnp.float32)
    size = 1 + protocol.stimuli + protocol.distractors

    def drawn(uniform: Float[Array, "*trials draws"]) -> Trials:
        isi = _integer(uniform[..., 0], min_isi, max_isi)
        length = isi + _integer(uniform[..., 1], min_iti, max_iti)
        return Trials(isi, length, *protocol.contents(uniform[..., 2:]))

    def observed(trials: Trials, time: Array, ages: Array) -> Float[Array, "B size"]:
        since = time - trials.isi[:, 0]
        us = trials.rewarded[:, 0] & (since >= 0) & (since < US_STEPS)
        stimuli = trials.stimuli[:, 0] & (time < CS_STEPS)[:, None]
        return jnp.concatenate([us[:, None], stimuli, ages > 0], axis=1).astype(float)

    def init(key: Key) -> ConditioningState:
        require_key("key", key)
        uniform = jax.random.uniform(key, (batch_size, count, 3 + protocol.draws), jnp.float32)
        trials = drawn(uniform[..., 1:])
        time = (uniform[:, 0, 0] * trials.length[:, 0]).astype(jnp.int32)
        ages = jnp.zeros((batch_size, protocol.distractors), jnp.int32)
        return ConditioningState(
            trials, time, ages, observed(trials, time, ages), jnp.zeros((), bool)
        )

    def sample(state: ConditioningState, key: Key) -> tuple[ConditioningState, Batch]:
        # All that a step may need in one draw, whose cost is that of a small product on a CPU.
        draws = (batch_size, protocol.distractors + 2 + protocol.draws)
        uniform = jax.random.uniform(key, draws, jnp.float32)
        over = state.time + 1 >= state.trials.length[:, 0]
        trials = _moved_on(over, state.trials, drawn(uniform[:, protocol.distractors :]))
        time = jnp.where(over, 0, state.time + 1)
        begins = (state.ages == 0) & (uniform[:, : protocol.distractors] < rates)
        goes_on = (state.ages > 0) & (state.ages < DISTRACTOR_STEPS)
        ages = jnp.where(goes_on, state.ages + 1, begins)

        observation = observed(trials, time, ages)
        dtype = observation.dtype
        gamma = jnp.full(batch_size, protocol.gamma, dtype)
        # The return of the step before counts from this step's US on.
        target = (observation[:, 0], gamma, _discounted(trials, time, protocol.gamma, dtype))
        reset = jnp.full(batch_size, ~state.started)
        batch = Batch((state.observation, observation), target, reset)
        return ConditioningState(trials, time, ages, observation, jnp.ones((), bool)), batch

    example = jnp.zeros(size)
    mean_length = (min_isi + max_isi + min_iti + max_iti) / 2
    return Task(
        batch_size=batch_size,
        **vectors(size, 1) | {"example_input": (example, example)},
        loss=temporal_difference(),
        chance_loss=protocol.rate * US_STEPS / mean_length,
        init=init,
        sample=sample,
        score=Score("MSRE", _square_return_error, higher_is_better=False),
        around=bootstrapped,
    )


def _square_return_error(prediction: tuple[Array, Array], target: tuple[Array, ...]) -> Array:
    return jnp.square(prediction[0][0] - target[2])


def _trials_ahead(protocol: _Protocol) -> int:
    """M: the trials that follow these contribute less than the remainder to any return."""
    horizon = math.log(_REMAINDER * (1 - protocol.gamma)) / math.log(protocol.gamma)
    # At the last step of a trial, M - 1 whole trials and an ISI are known.
    trial = protocol.isi[0] + protocol.iti[0]
    return 1 + math.ceil(max(0.0, horizon - protocol.isi[0]) / trial)


def _moved_on(over: Bool[Array, " B"], trials: Trials, new: Trials) -> Trials:
    """Where a trial is over the next ones move up, and a new one joins them."""

    def moved(queue: Array, last: Array) -> Array:
        shifted = jnp.concatenate([queue[:, 1:], last[:, None]], axis=1)
        return jnp.where(along(over, queue), shifted, queue)

    return jax.tree.map(moved, trials, new)


def _discounted(
    trials: Trials, time: Int[Array, " B"], gamma: float, dtype: jnp.dtype
) -> Float[Array, " B"]:
    """The discounted sum of the US from this step on, which is not discounted itself."""
    begins = jnp.cumsum(trials.length, axis=1) - trials.length
    steps = (begins + trials.isi - time[:, None])[..., None] + jnp.arange(US_STEPS)
    counted = trials.rewarded[..., None] & (steps >= 0)
    powers = gamma ** jnp.maximum(steps, 0).astype(dtype)
    return jnp.sum(jnp.where(counted, powers, 0), axis=(1, 2))


def _integer(uniform: Array, low: int, high: int) -> Array:
    """Uniform in low..high, both included."""
    return low + (uniform * (high - low + 1)).astype(jnp.int32)


def _around(isi: int) -> tuple[int, int]:
    """The shortest and the longest ISI with this mean."""
    bounds.require("[2, inf)", isi=isi)
    return isi - isi // 3, isi + isi // 3
