"""Estimators made of estimators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    SiteGradients,
    Structure,
)
from kfrtrl_jax._src.composition import on_leak
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.estimators.local_traces import e_prop
from kfrtrl_jax._src.estimators.snap import SnapState
from kfrtrl_jax._src.matrices import places_of_bands


def average(estimator: InfluenceEstimator, copies: int) -> InfluenceEstimator:
    """The mean of independent copies: as unbiased as one of them, the noise divided by `copies`.

    With `kf_rtrl()` this is r-KF-RTRL-AVG (Benzing et al., 2019, arXiv:1902.03993). The state has a
    leading axis [copies, ...].

    Raises:
      ValueError: if copies is less than 1.
    """
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")

    def init(structure: Structure) -> Any:
        one = estimator.init(structure)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (copies, *x.shape)), one)

    def push(state: Any, linearization: Linearization, key: Key) -> Any:
        return jax.vmap(estimator.push, in_axes=(0, None, 0))(
            state, linearization, jax.random.split(key, copies)
        )

    def pull(state: Any, cotangent: Array) -> SiteGradients:
        gradients = jax.vmap(estimator.pull, in_axes=(0, None))(state, cotangent)
        return jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients)

    def diagnostics(state: Any) -> dict[str, Array]:
        return jax.tree.map(jnp.mean, jax.vmap(estimator.diagnostics)(state))

    return InfluenceEstimator(init, push, pull, diagnostics)


class ResetEveryState(NamedTuple):
    """An estimator's state and its age.

    Attributes:
      inner: the state.
      age: the number of pushes so far, modulo the period.
    """

    inner: Any
    age: Array


def reset_every(period: int, estimator: InfluenceEstimator) -> InfluenceEstimator:
    """The estimator, forgetting everything on every `period`-th push, in all lanes at once.

    It makes any estimator a truncated one: the influence reaches back `period` pushes at most.

    Raises:
      ValueError: if period is less than 1.
    """
    if period < 1:
        raise ValueError(f"period must be at least 1, got {period}")

    def init(structure: Structure) -> ResetEveryState:
        return ResetEveryState(estimator.init(structure), jnp.zeros((), jnp.int32))

    def push(state: ResetEveryState, linearization: Linearization, key: Key) -> ResetEveryState:
        # To forget is to push a step whose state owes nothing to the one before.
        cut_off = linearization.scaled((state.age != 0).astype(jnp.float32))
        return ResetEveryState(estimator.push(state.inner, cut_off, key), (state.age + 1) % period)

    def pull(state: ResetEveryState, cotangent: Array) -> SiteGradients:
        return estimator.pull(state.inner, cotangent)

    def diagnostics(state: ResetEveryState) -> dict[str, Array]:
        return estimator.diagnostics(state.inner)

    return InfluenceEstimator(init, push, pull, diagnostics)


def random_resets(probability: float, estimator: InfluenceEstimator) -> InfluenceEstimator:
    """The estimator, each lane of which forgets everything with some probability at each push.

    Where it does not, J is divided by 1 - probability, so that its mean is J and the estimate as
    unbiased as the estimator's; the noise grows with the memory of the network, as G holds products of
    these factors. With `rtrl()` this is ARTBP (Tallec and Ollivier, 2017, arXiv:1705.08209) in forward
    form.

    Args:
      probability: of a reset, for each lane and push by itself.
      estimator: any.

    Raises:
      ValueError: if probability is not in [0, 1).
    """
    if not 0 <= probability < 1:
        raise ValueError(f"probability must be in [0, 1), got {probability}")

    def push(state: Any, linearization: Linearization, key: Key) -> Any:
        own, inner = jax.random.split(key)
        lanes = linearization.keep.shape
        keep = jax.random.bernoulli(own, 1 - probability, lanes) / (1 - probability)
        return estimator.push(state, linearization.scaled(keep), inner)

    return estimator._replace(push=push)


def mixture(
    estimators: Sequence[InfluenceEstimator], weights: Sequence[float]
) -> InfluenceEstimator:
    """sum_i w_i G~_i of independent estimators of different kinds, all on the same steps.

    Unbiased if all of them are and the weights sum to 1. The state is the tuple of their states, and
    the diagnostics of the i-th are named "i/...". It costs what all of them cost.

    Raises:
      ValueError: if there are no estimators, not as many weights, or a weight that is not finite.
    """
    estimators, weights = tuple(estimators), tuple(weights)
    if not estimators or len(estimators) != len(weights):
        raise ValueError(
            f"mixture needs a weight for each of its estimators and at least one, got "
            f"{len(estimators)} estimators and {len(weights)} weights"
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights must be finite, got {weights}")

    def init(structure: Structure) -> tuple[Any, ...]:
        return tuple(estimator.init(structure) for estimator in estimators)

    def push(state: tuple[Any, ...], linearization: Linearization, key: Key) -> tuple[Any, ...]:
        keys = jax.random.split(key, len(estimators))
        return tuple(
            estimator.push(one, linearization, k)
            for estimator, one, k in zip(estimators, state, keys)
        )

    def pull(state: tuple[Any, ...], cotangent: Array) -> SiteGradients:
        gradients = [estimator.pull(one, cotangent) for estimator, one in zip(estimators, state)]
        return jax.tree.map(lambda *g: sum(w * x for w, x in zip(weights, g)), *gradients)

    def diagnostics(state: tuple[Any, ...]) -> dict[str, Array]:
        return {
            f"{i}/{name}": x
            for i, (estimator, one) in enumerate(zip(estimators, state))
            for name, x in estimator.diagnostics(one).items()
        }

    return InfluenceEstimator(init, push, pull, diagnostics)


class ControlVariateState(NamedTuple):
    """An estimator's state on two recurrences, with what is exact on the simpler one.

    Attributes:
      inner: the estimator's state on J.
      on_leak: its state on the leak, from the same draws.
      exact: the exact influence on the leak.
    """

    inner: Any
    on_leak: Any
    exact: SnapState


def control_variate(estimator: InfluenceEstimator, coefficient: float = 1.0) -> InfluenceEstimator:
    """G~(J) - c (G~(leak) - G(leak)): the noise that the same draws make on the leak, taken off.

    The leak is the part of J that passes no pre-activation; what it carries is known exactly, from
    `e_prop()`. Unbiased for every c if the estimator is. It costs twice the estimator and an
    `e_prop()`.

    With `kf_rtrl()` and `uoro()` on small LSTMs, GRUs and highway networks at their first parameters it
    leaves between a quarter and two fifths of the noise, and next to nothing where nearly all memory is
    in the leak, while two independent copies leave half; the best c is close to 1. Where the leak is 0,
    as in a tanh network, all it can take off is noise of the present step.

    Its init raises UnsupportedCellError where `e_prop()` does, and where the leak carries influence to
    state variables that a pre-activation does not reach by itself: `e_prop()` is not exact there.

    Args:
      estimator: any, best one that carries the two alike: what differs stays.
      coefficient: c.

    Raises:
      ValueError: if the coefficient is not finite.
    """
    if not math.isfinite(coefficient):
        raise ValueError(f"coefficient must be finite, got {coefficient}")
    trace = e_prop()

    def init(structure: Structure) -> ControlVariateState:
        exact = trace.init(structure)
        _require_closed_leak(structure)
        return ControlVariateState(estimator.init(structure), estimator.init(structure), exact)

    def push(
        state: ControlVariateState, linearization: Linearization, key: Key
    ) -> ControlVariateState:
        return ControlVariateState(
            estimator.push(state.inner, linearization, key),
            estimator.push(state.on_leak, on_leak(linearization), key),
            trace.push(state.exact, linearization, key),
        )

    def pull(state: ControlVariateState, cotangent: Array) -> SiteGradients:
        return jax.tree.map(
            lambda g, noisy, exact: g - coefficient * (noisy - exact),
            estimator.pull(state.inner, cotangent),
            estimator.pull(state.on_leak, cotangent),
            trace.pull(state.exact, cotangent),
        )

    def diagnostics(state: ControlVariateState) -> dict[str, Array]:
        return estimator.diagnostics(state.inner)

    return InfluenceEstimator(init, push, pull, diagnostics)


def _require_closed_leak(structure: Structure) -> None:
    """Refuses a cell whose leak leads out of the entries of D.

    Raises:
      UnsupportedCellError: with the parameters.
    """
    for site in structure.sites:
        assert site.columns is not None
        entries = places_of_bands(site.columns.array, site.output_size)
        if structure.leak_mask is None:
            reached = np.broadcast_to(entries.any(axis=0), entries.shape)
        else:
            reached = structure.leak_mask.array.astype(np.float32) @ entries.astype(np.float32) > 0
        if np.any(reached & ~entries):
            raise UnsupportedCellError(
                f"control_variate cannot use this cell: what {site.label} does to a state variable "
                f"passes on to another through no pre-activation, and e_prop(), which it takes "
                f"for exact there, leaves that out; the estimator alone takes the cell"
            )


class AntitheticState(NamedTuple):
    """Copies of an estimator and the place in their pattern of signs.

    Attributes:
      copies: the states, with a leading axis [copies, ...].
      age: the number of steps so far, modulo the number of copies.
    """

    copies: Any
    age: Array


def antithetic(estimator: InfluenceEstimator, copies: int = 2) -> InfluenceEstimator:
    """The mean of copies with opposite signs: of less noise than that of independent copies.

    All copies make the same draws, but copy i sees epsilon_it a_k and epsilon_it D_k, which is the same
    I_t; epsilon are the signs of a Hadamard matrix, whose columns t mod `copies` are orthogonal. Where
    an estimator has signs c_t between the old and the new, as `kf_rtrl()`, its noise is a sum of terms
    c_s c_t X_st over pairs of steps s < t. If X were the same in all copies, what is left in the mean
    would be the pairs a multiple of `copies` steps apart. X depends on the signs through the scales p.

    Unbiased if the estimator is. It costs what the copies cost, as `average`. With `kf_rtrl()` on small
    tanh, highway, LSTM and GRU networks at their first parameters, over 20 steps, two copies left 0.73
    to 0.86 of the noise of two independent ones, four 0.18 to 0.59 of that of four; over 60 steps of
    long memory 0.89 to 0.94, and 0.73 to 0.96. Estimators with their noise within a step (`uoro()`,
    `nobacktrack()`, `reverse_kf_rtrl()`) have no such signs, and copies that are all alike: there
    `average` is better.

    Args:
      estimator: `kf_rtrl()`, or one made of it.
      copies: a power of two.

    Raises:
      ValueError: if copies is not a power of two.
    """
    if copies < 1 or copies & (copies - 1):
        raise ValueError(f"copies must be a power of two, got {copies}")
    # Entry (i, t): the sign of copy i at step t, with orthogonal columns (Sylvester's construction).
    signs: np.ndarray = np.ones((1, 1))
    while len(signs) < copies:
        signs = np.kron(signs, [[1, 1], [1, -1]])

    mean = average(estimator, copies)

    def init(structure: Structure) -> AntitheticState:
        return AntitheticState(mean.init(structure), jnp.zeros((), jnp.int32))

    def push(state: AntitheticState, linearization: Linearization, key: Key) -> AntitheticState:
        def push_one(one: Any, of_copy: Array) -> Any:
            of_steps = of_copy[np.arange(len(linearization.singles)) % copies]
            return estimator.push(one, linearization.with_signs(of_steps), key)

        pushed = jax.vmap(push_one)(state.copies, jnp.roll(jnp.asarray(signs), -state.age, axis=1))
        return AntitheticState(pushed, (state.age + len(linearization.singles)) % copies)

    def pull(state: AntitheticState, cotangent: Array) -> SiteGradients:
        return mean.pull(state.copies, cotangent)

    def diagnostics(state: AntitheticState) -> dict[str, Array]:
        return mean.diagnostics(state.copies)

    return InfluenceEstimator(init, push, pull, diagnostics)
