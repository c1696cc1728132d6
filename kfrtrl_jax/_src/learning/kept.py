"""The linearizations of the last steps, each at the parameters that it was taken with.

Along them a loss is differentiated exactly, by products with vectors alone: however often the
parameters have changed since, each step counts as it was made.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Linearization, SiteGradients
from kfrtrl_jax._src.learning.types import Model


class Kept(NamedTuple):
    """A ring of linearizations.

    Attributes:
      steps: L of them, with a leading axis; 0 where there was no step yet.
      next: the place of the next one, a scalar.
    """

    steps: Linearization
    next: Array


def empty(model: Model, parameters: Any, carry: Any, inputs: Any, size: int) -> Kept:
    """A ring for `size` steps, none of them made yet; what is linearized tells types and shapes."""
    keep = jnp.ones(model.batch_size, model.linearizer.structure.dtype)
    shapes = jax.eval_shape(model.linearizer.linearize, parameters, carry, inputs, keep)
    steps = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)
    return Kept(steps, jnp.zeros((), jnp.int32))


def append(kept: Kept, steps: Linearization) -> Kept:
    """With steps, [U, ...], at the next places, a run of the ring as U divides its size."""
    size, count = len(kept.steps.keep), len(steps.keep)
    written = jax.tree.map(
        lambda ring, new: jax.lax.dynamic_update_slice_in_dim(ring, new, kept.next, axis=0),
        kept.steps,
        steps,
    )
    return Kept(written, (kept.next + count) % size)


def oldest(kept: Kept, count: int) -> Linearization:
    """The oldest of a full ring, in the order in which they were made; `count` divides its size."""
    return jax.tree.map(
        lambda ring: jax.lax.dynamic_slice_in_dim(ring, kept.next, count, axis=0), kept.steps
    )


class Backward(NamedTuple):
    """A derivative carried back along kept steps.

    Attributes:
      cotangent: by the state before them, [B, n].
      gradients: for every site what the steps themselves give, [m, g].
      started: the lanes that start anew in one of the steps, [B].
    """

    cotangent: Array
    gradients: SiteGradients
    started: Array


def backpropagate(kept: Kept, cotangent: Array, count: Any, careful: bool) -> Backward:
    """Backward along the newest `count` steps of a ring, for a derivative by the state after them.

    Args:
      kept: the ring.
      cotangent: [B, n].
      count: how many steps; may be traced: the loop takes as many rounds.
      careful: whether to choose 0 where nothing depends on a lane's state any more, as derivatives may
        be infinite there; without, 0 is multiplied.
    """
    size = len(kept.steps.keep)
    sites = kept.steps.sites

    def back(i: Any, state: tuple[Array, Any, Array]) -> tuple[Array, Any, Array]:
        c, deltas, used = state
        t = (kept.next - 1 - i) % size
        step = jax.tree.map(
            lambda ring: jax.lax.dynamic_index_in_dim(ring, t, axis=0, keepdims=False), kept.steps
        )
        lanes = jnp.any(c != 0, axis=1) if careful else jnp.ones(len(c), bool)

        def choose(x: Array) -> Array:
            return jnp.where(lanes.reshape(-1, *[1] * (x.ndim - 1)), x, 0) if careful else x

        deltas = [
            jax.lax.dynamic_update_index_in_dim(
                delta, choose(site.derivatives.vector_times(c)), t, axis=0
            )
            for delta, site in zip(deltas, step.sites)
        ]
        used = jax.lax.dynamic_update_index_in_dim(used, lanes, t, axis=0)
        return choose(step.jacobian.vector_times(c)), deltas, used

    deltas = [
        jnp.zeros((*site.inputs.shape[:-1], shape[1]), cotangent.dtype)
        for site, shape in ((s, s.derivatives.shape) for s in sites)
    ]
    used = jnp.zeros(kept.steps.keep.shape, bool)
    cotangent, deltas, used = jax.lax.fori_loop(0, count, back, (cotangent, deltas, used))
    gradients = tuple(
        jnp.einsum("lbtm,lbtg->mg", jnp.where(used[:, :, None, None], site.inputs, 0), delta)
        for site, delta in zip(sites, deltas)
    )
    age = (kept.next - 1 - jnp.arange(size)) % size
    started = jnp.any((kept.steps.keep == 0) & (age < count)[:, None], axis=0)
    return Backward(cotangent, gradients, started)
