"""Two estimators side by side: one compared with the other, or each for some of the parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    SiteGradients,
    Structure,
)
from kfrtrl_jax._src.errors import ConfigError
from kfrtrl_jax._src.estimators.weights import Weights, weights_of

_PROBES = 8
# Folding this into a key gives none of the key's splits; split(key, k)[1] is fold_in(key, 1).
_OTHER = 0x7FFFFFFF


class TrackedState(NamedTuple):
    """The states of an estimator and of the reference that it is compared with.

    Attributes:
      inner: the estimator's state.
      reference: the state of the reference.
      probes: fixed cotangents on which the two are compared, [C, B, n].
      weights: the weights of every site.
    """

    inner: Any
    reference: Any
    probes: Float[Array, "C B n"]
    weights: tuple[Weights, ...]


def tracked(estimator: InfluenceEstimator, reference: InfluenceEstimator) -> InfluenceEstimator:
    """The estimator, with its distance from a reference estimator among the diagnostics.

    Both see every step and every cotangent; only the estimator's gradients are used. The diagnostics
    compare the gradients G~^T c of the two, over all sites, for a few fixed random c: "cosine", the
    mean of their cosines, and "relative_error", the root of sum |G~^T c - G^T c|^2 / sum |G^T c|^2.
    Both are 0 as long as the reference is 0. The cost is that of both estimators.

    Args:
      estimator: the estimator to compare.
      reference: a better estimator, such as `rtrl()`.
    """

    def init(structure: Structure) -> TrackedState:
        shape = (_PROBES, structure.batch_size, structure.state_size)
        probes = jax.random.normal(jax.random.key(0), shape, structure.dtype)
        return TrackedState(
            estimator.init(structure), reference.init(structure), probes, weights_of(structure)
        )

    def push(state: TrackedState, linearization: Linearization, key: Key) -> TrackedState:
        # The estimator gets the key itself, so that its draws are the same whether tracked or not.
        return state._replace(
            inner=estimator.push(state.inner, linearization, key),
            reference=reference.push(
                state.reference, linearization, jax.random.fold_in(key, _OTHER)
            ),
        )

    def pull(state: TrackedState, cotangent: Float[Array, "B n"]) -> SiteGradients:
        return estimator.pull(state.inner, cotangent)

    def diagnostics(state: TrackedState) -> dict[str, Array]:
        def compared(one: InfluenceEstimator, own_state: Any) -> Float[Array, "C P"]:
            return jax.vmap(lambda c: _flat(state.weights, one.pull(own_state, c)))(state.probes)

        ours, theirs = compared(estimator, state.inner), compared(reference, state.reference)
        norms = jnp.linalg.norm(ours, axis=1) * jnp.linalg.norm(theirs, axis=1)
        error = jnp.linalg.norm(ours - theirs)
        return {
            **estimator.diagnostics(state.inner),
            "cosine": jnp.mean(_ratio(jnp.sum(ours * theirs, axis=1), norms)),
            "relative_error": _ratio(error, jnp.linalg.norm(theirs)),
        }

    def observe(state: TrackedState, cotangents: Float[Array, "U B n"]) -> TrackedState:
        return state._replace(
            inner=estimator.observe(state.inner, cotangents),
            reference=reference.observe(state.reference, cotangents),
        )

    return InfluenceEstimator(init, push, pull, diagnostics, observe)


def _flat(weights: tuple[Weights, ...], gradients: SiteGradients) -> Float[Array, " P"]:
    return jnp.concatenate([w.existing(g).reshape(-1) for w, g in zip(weights, gradients)])


def _ratio(numerator: Float[Array, " *C"], denominator: Float[Array, " *C"]) -> Float[Array, " *C"]:
    present = denominator > 0
    return jnp.where(present, numerator / jnp.where(present, denominator, 1), 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PartitionState:
    """The states of two estimators, each for some of the sites.

    Attributes:
      chosen: the state of the first estimator.
      other: the state of the second.
      choice: for every site, whether it belongs to the first; static.
    """

    chosen: Any
    other: Any
    choice: tuple[bool, ...] = dataclasses.field(metadata={"static": True})


def partition(
    predicate: Callable[[str], bool], chosen: InfluenceEstimator, other: InfluenceEstimator
) -> InfluenceEstimator:
    """One estimator for the sites whose label satisfies the predicate, another for the rest.

    For example `partition(lambda label: "gates" in label, ok(8), snap())`. Partitions can be nested. A
    label names the paths of all parameters that enter at the site, such as
    "candidate/weights + candidate/bias".

    Its init raises ConfigError, listing the labels, if all sites would go to the same estimator.
    """

    def init(structure: Structure) -> PartitionState:
        choice = tuple(bool(predicate(site.label)) for site in structure.sites)
        if all(choice) or not any(choice):
            labels = ", ".join(repr(site.label) for site in structure.sites)
            raise ConfigError(
                f"partition: the predicate holds of {'all' if any(choice) else 'none'} of the sites "
                f"{labels}; it must hold of some and not of others"
            )
        parts = [
            structure._replace(sites=_pick(structure.sites, choice, which))
            for which in (True, False)
        ]
        return PartitionState(chosen.init(parts[0]), other.init(parts[1]), choice)

    def push(state: PartitionState, linearization: Linearization, key: Key) -> PartitionState:
        keys = jax.random.split(key)

        def part(which: bool) -> Linearization:
            return linearization.with_sites(lambda sites: _pick(sites, state.choice, which))

        parts = [part(True), part(False)]
        return PartitionState(
            chosen.push(state.chosen, parts[0], keys[0]),
            other.push(state.other, parts[1], keys[1]),
            state.choice,
        )

    def pull(state: PartitionState, cotangent: Float[Array, "B n"]) -> SiteGradients:
        gradients = {
            True: iter(chosen.pull(state.chosen, cotangent)),
            False: iter(other.pull(state.other, cotangent)),
        }
        return tuple(next(gradients[which]) for which in state.choice)

    def diagnostics(state: PartitionState) -> dict[str, Array]:
        parts = {
            "chosen": chosen.diagnostics(state.chosen),
            "other": other.diagnostics(state.other),
        }
        return {f"{part}/{name}": x for part, named in parts.items() for name, x in named.items()}

    def observe(state: PartitionState, cotangents: Float[Array, "U B n"]) -> PartitionState:
        return dataclasses.replace(
            state,
            chosen=chosen.observe(state.chosen, cotangents),
            other=other.observe(state.other, cotangents),
        )

    return InfluenceEstimator(init, push, pull, diagnostics, observe)


def _pick(sites: tuple[Any, ...], choice: tuple[bool, ...], which: bool) -> tuple[Any, ...]:
    return tuple(site for site, c in zip(sites, choice) if c == which)
