"""Combinators: estimators made of other estimators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from kfrtrl_jax._src import bounds
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
    """The mean of independent copies: the same bias, and the noise of one copy divided by `copies`.

    With `kf_rtrl()` this is r-KF-RTRL-AVG (Benzing et al., 2019, arXiv:1902.03993). The state has a
    leading axis [copies, ...].

    Raises:
      ValueError: if copies is less than 1.
    """
    bounds.require("[1, inf)", copies=copies)

    def init(structure: Structure) -> Any:
        one = estimator.init(structure)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (copies, *x.shape)), one)

    def push(state: Any, linearization: Linearization, key: Key) -> Any:
        return jax.vmap(estimator.push, in_axes=(0, None, 0))(
            state, linearization, jax.random.split(key, copies)
        )

    def pull(state: Any, cotangent: Float[Array, "B n"]) -> SiteGradients:
        gradients = jax.vmap(estimator.pull, in_axes=(0, None))(state, cotangent)
        return jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients)

    def diagnostics(state: Any) -> dict[str, Array]:
        return jax.tree.map(jnp.mean, jax.vmap(estimator.diagnostics)(state))

    def observe(state: Any, cotangents: Float[Array, "U B n"]) -> Any:
        return jax.vmap(estimator.observe, in_axes=(0, None))(state, cotangents)

    return InfluenceEstimator(init, push, pull, diagnostics, observe)


class ResetEveryState(NamedTuple):
    """An estimator's state and its age.

    Attributes:
      inner: the estimator's state.
      age: the number of pushes so far, modulo the period.
    """

    inner: Any
    age: Int[Array, ""]


def reset_every(period: int, estimator: InfluenceEstimator) -> InfluenceEstimator:
    """The estimator, reset at every `period`-th push, in all lanes at once.

    This truncates any estimator: its influence reaches back at most `period` pushes.

    Raises:
      ValueError: if period is less than 1.
    """
    bounds.require("[1, inf)", period=period)

    def init(structure: Structure) -> ResetEveryState:
        return ResetEveryState(estimator.init(structure), jnp.zeros((), jnp.int32))

    def push(state: ResetEveryState, linearization: Linearization, key: Key) -> ResetEveryState:
        # A reset is a push with J = 0.
        cut_off = linearization.scaled((state.age != 0).astype(jnp.float32))
        return ResetEveryState(estimator.push(state.inner, cut_off, key), (state.age + 1) % period)

    def pull(state: ResetEveryState, cotangent: Float[Array, "B n"]) -> SiteGradients:
        return estimator.pull(state.inner, cotangent)

    def diagnostics(state: ResetEveryState) -> dict[str, Array]:
        return estimator.diagnostics(state.inner)

    def observe(state: ResetEveryState, cotangents: Float[Array, "U B n"]) -> ResetEveryState:
        return state._replace(inner=estimator.observe(state.inner, cotangents))

    return InfluenceEstimator(init, push, pull, diagnostics, observe)


def random_resets(probability: float, estimator: InfluenceEstimator) -> InfluenceEstimator:
    """The estimator, each lane of which is reset with some probability at each push.

    A lane that is not reset has its J divided by 1 - probability. The mean of J is then unchanged, and
    so is the estimator's bias. The noise grows with the memory of the network, as G contains products
    of these factors. With `rtrl()` this is ARTBP (Tallec and Ollivier, 2017, arXiv:1705.08209) in
    forward form.

    Args:
      probability: of a reset, independent for each lane and push.
      estimator: any estimator.

    Raises:
      ValueError: if probability is not in [0, 1).
    """
    bounds.require("[0, 1)", probability=probability)

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
    the diagnostics of the i-th are named "i/...". The cost is the sum of their costs.

    Raises:
      ValueError: if there are no estimators, if their number is not that of the weights, or if a weight
        is not finite.
    """
    estimators, weights = tuple(estimators), tuple(weights)
    if not estimators or len(estimators) != len(weights):
        raise ValueError(
            f"mixture needs as many weights as estimators, and at least one, got "
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

    def pull(state: tuple[Any, ...], cotangent: Float[Array, "B n"]) -> SiteGradients:
        gradients = [estimator.pull(one, cotangent) for estimator, one in zip(estimators, state)]
        return jax.tree.map(lambda *g: sum(w * x for w, x in zip(weights, g)), *gradients)

    def diagnostics(state: tuple[Any, ...]) -> dict[str, Array]:
        return {
            f"{i}/{name}": x
            for i, (estimator, one) in enumerate(zip(estimators, state))
            for name, x in estimator.diagnostics(one).items()
        }

    def observe(state: tuple[Any, ...], cotangents: Float[Array, "U B n"]) -> tuple[Any, ...]:
        return tuple(
            estimator.observe(one, cotangents) for estimator, one in zip(estimators, state)
        )

    return InfluenceEstimator(init, push, pull, diagnostics, observe)


class ControlVariateState(NamedTuple):
    """An estimator's state on two recurrences, and the exact influence on the simpler one.

    Attributes:
      inner: the estimator's state with J as the recurrence.
      on_leak: the estimator's state with the leak as the recurrence, from the same draws.
      exact: the exact influence with the leak as the recurrence.
    """

    inner: Any
    on_leak: Any
    exact: SnapState


def control_variate(estimator: InfluenceEstimator, coefficient: float = 1.0) -> InfluenceEstimator:
    """G~(J) - c (G~(leak) - G(leak)): subtracts the noise that the same draws cause on the leak.

    The leak is the part of J that passes through no product with weights. Its influence is known
    exactly, from `e_prop()`. Unbiased for every c if the estimator is. The cost is twice that of the
    estimator, and that of `e_prop()`.

    With `kf_rtrl()` and `uoro()` on small LSTMs, GRUs and highway networks at their initial parameters,
    between a quarter and two fifths of the noise remains, and almost none if nearly all memory is in
    the leak; two independent copies leave half. The best c is close to 1. If the leak is 0, as in a
    tanh network, only noise of the present step can be removed.

    Its init raises UnsupportedCellError where `e_prop()` does, and where the leak carries influence to
    state variables that the pre-activation itself does not reach: `e_prop()` is not exact there.

    Args:
      estimator: any estimator. Noise that its two runs do not share remains.
      coefficient: c.

    Raises:
      ValueError: if the coefficient is not finite.
    """
    bounds.require("(-inf, inf)", coefficient=coefficient)
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

    def pull(state: ControlVariateState, cotangent: Float[Array, "B n"]) -> SiteGradients:
        return jax.tree.map(
            lambda g, noisy, exact: g - coefficient * (noisy - exact),
            estimator.pull(state.inner, cotangent),
            estimator.pull(state.on_leak, cotangent),
            trace.pull(state.exact, cotangent),
        )

    def diagnostics(state: ControlVariateState) -> dict[str, Array]:
        return estimator.diagnostics(state.inner)

    def observe(
        state: ControlVariateState, cotangents: Float[Array, "U B n"]
    ) -> ControlVariateState:
        inner, leak = (estimator.observe(s, cotangents) for s in (state.inner, state.on_leak))
        return state._replace(inner=inner, on_leak=leak)

    return InfluenceEstimator(init, push, pull, diagnostics, observe)


def _require_closed_leak(structure: Structure) -> None:
    """Refuses a cell whose leak carries influence to entries outside those of D.

    Raises:
      UnsupportedCellError: naming the parameters.
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
                f"control_variate cannot use this cell: the influence of {site.label} passes from one "
                f"state variable to another through no product, which e_prop() ignores, so "
                f"e_prop() is not exact on the leak; use the estimator without control_variate"
            )


class AntitheticState(NamedTuple):
    """The states of all copies and the position in their pattern of signs.

    Attributes:
      copies: the states, with a leading axis [copies, ...].
      age: the number of steps so far, modulo the number of copies.
    """

    copies: Any
    age: Int[Array, ""]


def antithetic(estimator: InfluenceEstimator, copies: int = 2) -> InfluenceEstimator:
    """The mean of copies with opposite signs, which has less noise than that of independent copies.

    All copies use the same draws, but copy i sees epsilon_it a_k and epsilon_it D_k, which leaves I_t
    unchanged. The epsilon are the signs of a Hadamard matrix, whose columns t mod `copies` are
    orthogonal. If an estimator joins old and new terms by signs c_t, as `kf_rtrl()` does, its noise is
    a sum of terms c_s c_t X_st over pairs of steps s < t. If X were the same in all copies, only pairs
    a multiple of `copies` steps apart would remain in the mean. X depends on the signs through the
    scales p.

    Unbiased if the estimator is. It costs as much as `average` with as many copies. With `kf_rtrl()` on
    small tanh, highway, LSTM and GRU networks at their initial parameters, over 20 steps, two copies
    left 0.73 to 0.86 of the noise of two independent ones, and four copies 0.18 to 0.59 of the noise of
    four; over 60 steps with long memory, 0.89 to 0.94 and 0.73 to 0.96. Estimators whose noise arises
    within a step (`uoro()`, `nobacktrack()`, `reverse_kf_rtrl()`) have no such signs, so that all
    copies are identical: use `average` for them.

    Args:
      estimator: `kf_rtrl()`, or a combinator of it.
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
        def push_one(one: Any, of_copy: Float[Array, " copies"]) -> Any:
            of_steps = of_copy[np.arange(len(linearization.singles)) % copies]
            return estimator.push(one, linearization.with_signs(of_steps), key)

        pushed = jax.vmap(push_one)(state.copies, jnp.roll(jnp.asarray(signs), -state.age, axis=1))
        return AntitheticState(pushed, (state.age + len(linearization.singles)) % copies)

    def pull(state: AntitheticState, cotangent: Float[Array, "B n"]) -> SiteGradients:
        return mean.pull(state.copies, cotangent)

    def diagnostics(state: AntitheticState) -> dict[str, Array]:
        return mean.diagnostics(state.copies)

    def observe(state: AntitheticState, cotangents: Float[Array, "U B n"]) -> AntitheticState:
        return state._replace(copies=mean.observe(state.copies, cotangents))

    return InfluenceEstimator(init, push, pull, diagnostics, observe)
