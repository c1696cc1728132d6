"""Lanes, the independent sequences of a batch: their initial carry and their restarts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Cell, InfluenceEstimator, Structure


def is_key(leaf: Any) -> bool:
    """Whether an array holds typed PRNG keys."""
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def is_raw_key(leaf: Any) -> bool:
    """Whether an array has the form of raw PRNG keys (`jax.random.PRNGKey`), uint32[..., 2]."""
    form = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    return bool(leaf.dtype == form.dtype and jnp.shape(leaf)[-1:] == form.shape)


def initial_lanes(cell: Cell, batch_size: int) -> Any:
    """The carry of B lanes before their first step; each lane has its own PRNG keys, typed or raw."""

    def lanes(leaf: Any) -> Array:
        return jnp.broadcast_to(leaf, (batch_size, *jnp.shape(leaf)))

    return jax.vmap(with_keys_folded)(
        jax.tree.map(lanes, cell.initial_carry()), jnp.arange(batch_size)
    )


def with_keys_folded(carry: Any, number: int | Array) -> Any:
    """The carry with a number folded into each of its PRNG keys, typed or raw."""
    fold = jnp.vectorize(jax.random.fold_in, signature="(),()->()")

    def leaf(x: Any) -> Array:
        x = jnp.asarray(x)
        if is_key(x):
            return fold(x, number)
        if is_raw_key(x):
            return jax.random.key_data(fold(jax.random.wrap_key_data(x), number))
        return x

    return jax.tree.map(leaf, carry)


def varying_axes(shapes: Any, larger: Any) -> Any:
    """For each array the axis that is longer in a second tree of shapes; -1 for none.

    The axis of the lanes is the one that grows with their number.
    """

    def axis(a: Any, b: Any) -> int:
        return next((i for i, (x, y) in enumerate(zip(a.shape, b.shape)) if x != y), -1)

    return jax.tree.map(axis, shapes, larger)


def axes_of_lanes(estimator: InfluenceEstimator, structure: Structure) -> Any:
    """For every leaf of the estimator's state the axis of the lanes: that which grows with B; or -1."""
    one_more = structure._replace(batch_size=structure.batch_size + 1)
    shapes, larger = (jax.eval_shape(lambda s=s: estimator.init(s)) for s in (structure, one_more))
    return varying_axes(shapes, larger)


def along(values: Array, like: Array) -> Array:
    """Values of lanes, [B], to stand beside arrays of lanes, [B, ...]: with axes of length 1."""
    return values.reshape(*values.shape, *[1] * (like.ndim - values.ndim))


def restarted(cell: Cell, carry: Any, reset: Array) -> Any:
    """The carry [B, ...] with the lanes in reset [B] set to the start of a sequence.

    PRNG keys are not reset. The initial carry has no gradient and no past.
    """
    fresh = cell.initial_carry() if cell.restart is None else jax.vmap(cell.restart)(carry)
    lanes = jax.tree.leaves(carry)[0].shape[0]

    def leaf(new: Any, old: Array) -> Array:
        if is_key(old) or is_raw_key(old):
            return old
        new = jnp.asarray(new, old.dtype)
        if cell.restart is None:
            new = jnp.broadcast_to(new, (lanes, *new.shape))
        if jnp.issubdtype(old.dtype, jnp.inexact):
            new = jax.lax.stop_gradient(new)
        return jnp.where(along(reset, old), new, old)

    return jax.tree.map(leaf, fresh, carry)
