"""Estimators on steps that were linearized once and with signs drawn beforehand: quick to compile."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from kfrtrl_jax._src.matrices import Dense, Terms
from kfrtrl_jax.base import Cell, InfluenceEstimator, Linearization, Structure
from tests.trajectories import SMALL_CELLS, run

PROJECTIONS = 6


class Steps(NamedTuple):
    """Linearizations [T, B, ...] of a cell with two lanes; lane 1 starts anew in the middle."""

    structure: Structure
    linearizations: Linearization


def linearized(cell: Cell, count: int) -> Steps:
    path = run(cell, count)

    @jax.jit
    def stack():
        return jax.lax.map(
            lambda xs: path.linearizer.linearize(path.params, *xs),
            (path.carries, path.inputs, path.keep),
        )

    # Slicing and scaling numpy arrays compiles nothing.
    return Steps(path.linearizer.structure, jax.tree.map(np.asarray, stack()))


@functools.cache
def along(cell: str) -> Steps:
    """Eight steps of a small cell, by its name."""
    return linearized(SMALL_CELLS[cell], 8)


def part(steps: Steps, which: slice) -> Steps:
    kept = jax.tree.map(lambda x: x[which], steps.linearizations)
    return steps._replace(linearizations=kept)


def with_derivatives(steps: Steps, change: Callable) -> Steps:
    """With each D, a matrix [T, 1, B, n, g], changed."""
    sites = tuple(
        site._replace(derivatives=Terms(tuple(map(change, site.derivatives.groups))))
        for site in steps.linearizations.sites
    )
    return steps._replace(linearizations=steps.linearizations._replace(sites=sites))


def dense(steps: Steps) -> Steps:
    """With D as dense matrices of the same values."""
    shapes = tuple(site._replace(columns=None) for site in steps.structure.sites)
    structure = steps.structure._replace(sites=shapes)
    return with_derivatives(steps, jax.jit(lambda d: Dense(d.dense())))._replace(
        structure=structure
    )


def scaled_rows(steps: Steps, scales: np.ndarray) -> Steps:
    """With the rows of each banded D times the scales, broadcast to [T, B, bands, n]."""

    def scaled(x):
        return x * np.broadcast_to(scales, (len(x), *x.shape[2:]))[:, None]

    return with_derivatives(steps, lambda d: jax.tree.map(scaled, d))


def states(estimator: InfluenceEstimator, steps: Steps, keys: jax.Array) -> tuple:
    """The state at the end and those after each step, for one key a step."""

    def step(state, xs):
        state = estimator.push(state, *xs)
        return state, state

    return jax.lax.scan(step, estimator.init(steps.structure), (steps.linearizations, keys))


def influence(estimator: InfluenceEstimator, steps: Steps, keys: jax.Array) -> jax.Array:
    """All of G at the end, [B n, weights of all sites], for one key a step."""
    shape = (steps.structure.batch_size, steps.structure.state_size)
    state, _ = states(estimator, steps, keys)
    cotangents = jnp.eye(shape[0] * shape[1]).reshape(-1, *shape)
    pulled = jax.vmap(lambda c: estimator.pull(state, c))(cotangents)
    return jnp.concatenate([g.reshape(len(cotangents), -1) for g in pulled], axis=1)


def exact(steps: Steps) -> jax.Array:
    return influence(estimators.rtrl(), steps, jnp.zeros(length(steps)))


def length(steps: Steps) -> int:
    return len(jax.tree.leaves(steps.linearizations)[0])


def patch_signs(modules: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimators of these modules take keys that are the signs themselves, [signs].

    Where there are not enough signs for all lanes they are the same in all.
    """

    def given(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        if key.shape[0] == shape[-1]:
            return jnp.broadcast_to(key, shape).astype(dtype)
        return key[: np.prod(shape)].reshape(shape).astype(dtype)

    for module in modules:
        imported = importlib.import_module(f"kfrtrl_jax._src.estimators.{module}")
        monkeypatch.setattr(imported, "random_signs", given)


def sample(
    estimator: InfluenceEstimator, steps: Steps, *keys: jax.Array
) -> list[tuple[float, float]]:
    """For each set of draws, keys [draws, T, ...]: the deviation of their mean, and their noise.

    The deviation is the largest of a few random projections, in standard errors; the noise is the mean
    of |G~ - G|_F^2 / |G|_F^2.
    """

    @jax.jit
    def moments(keys):
        true = exact(steps)
        directions = np.random.default_rng(1).normal(size=(PROJECTIONS, *true.shape))
        off = jax.vmap(lambda k: influence(estimator, steps, k))(keys) - true
        projected = jnp.einsum("pij,kij->kp", directions, off)
        error = jnp.std(projected, axis=0, ddof=1) / np.sqrt(len(keys))
        noise = jnp.sum(off**2) / len(keys) / jnp.sum(true**2)
        return jnp.max(jnp.abs(jnp.mean(projected, axis=0)) / error), noise

    return [(float(z), float(noise)) for z, noise in map(moments, keys)]


def mean_and_teeth(
    estimator: InfluenceEstimator, steps: Steps, draws: int = 4096
) -> tuple[float, float]:
    """Under `patch_signs`: the deviation of the mean, and what it would be if all signs were equal."""
    bits = np.random.default_rng(0).integers(0, 2, (draws, length(steps), 64))
    signs = 1.0 - 2.0 * bits
    (z, _), (without, _) = sample(estimator, steps, signs, np.ones_like(signs))
    return z, without


def assert_unbiased(estimator: InfluenceEstimator, steps: Steps) -> None:
    """Under `patch_signs`; and that equal signs would make a bias."""
    z, with_equal_signs = mean_and_teeth(estimator, steps)
    assert z < 4
    assert with_equal_signs > 100


def every_draw(
    estimator: InfluenceEstimator, steps: Steps, signs: int
) -> tuple[jax.Array, jax.Array]:
    """G after the last step for all 2^signs draws of that step, and what their mean should be.

    The draws of the steps before are fixed. For estimators under `patch_signs`.
    """
    table = 1.0 - 2.0 * (np.arange(2**signs)[:, None] >> np.arange(signs) & 1)
    before, last = part(steps, slice(-1)), part(steps, slice(-1, None))
    earlier = table[37 * np.arange(1, length(steps)) % 2**signs]

    @jax.jit
    def all_draws():
        def draw(row):
            return influence(estimator, steps, jnp.concatenate([earlier, row[None]]))

        jacobian = jax.tree.map(lambda x: x[0], last.linearizations).jacobian.dense()
        old = influence(estimator, before, earlier)
        carried = jacobian @ old.reshape(*jacobian.shape[:2], -1)
        return jax.vmap(draw)(table), carried.reshape(old.shape) + exact(last)

    return all_draws()
