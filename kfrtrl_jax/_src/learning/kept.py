"""The linearizations of the last steps, each at the parameters that it was taken with.

Along them a loss is differentiated exactly, by products with vectors alone: however often the
parameters have changed since, each step counts as it was made.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Linearization, SiteJacobian
from kfrtrl_jax._src.lanes import along
from kfrtrl_jax._src.learning.groups import GroupedGradients, grouped
from kfrtrl_jax._src.learning.recovery import lanes_lost
from kfrtrl_jax._src.learning.types import Model

# A product of as many steps at a time gives their gradients: one of all that could be kept would be
# mostly of zeros, and one a step would read and write the sum for every step.
_RUN = 4


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


def forgotten(kept: Kept, lanes: Array) -> Kept:
    """With the steps of some lanes, [B], as in a ring without steps, even where they are not finite."""

    def without(step: Linearization) -> Linearization:
        keep = jnp.where(lanes, 0, step.keep)
        rest = ~lanes
        sites = tuple(
            SiteJacobian(
                jnp.where(along(lanes, site.inputs), 0, site.inputs), site.derivatives.kept(rest)
            )
            for site in step.sites
        )
        return Linearization(step.jacobian.kept(rest), sites, step.leak.kept(rest), keep)

    return kept._replace(steps=jax.vmap(without)(kept.steps))


def lost(kept: Kept) -> Array:
    """The lanes, [B], with steps that are not finite."""
    steps = kept.steps
    matrices = [steps.jacobian, steps.leak]
    of_lanes = [
        *(m.rest for m in matrices),
        *((p.left, p.right) for m in matrices for p in m.products),
        *(site.inputs for site in steps.sites),
    ]
    of_terms = [site.derivatives for site in steps.sites]
    pairs = [
        *((1, x) for x in jax.tree.leaves(of_lanes)),
        *((2, x) for x in jax.tree.leaves(of_terms)),
    ]
    return lanes_lost(pairs, steps.keep.shape[1])


class Backward(NamedTuple):
    """A derivative carried back along kept steps.

    Attributes:
      cotangent: by the state before them, [B, n].
      gradients: for every site what the steps themselves give, by groups of lanes, [P, m, g].
      started: the lanes that start anew in one of the steps, [B].
    """

    cotangent: Array
    gradients: GroupedGradients
    started: Array


def backpropagate(
    kept: Kept, cotangent: Array, count: Any, careful: bool, groups: int = 1
) -> Backward:
    """Backward along the newest `count` steps of a ring, for a derivative by the state after them.

    Args:
      kept: the ring.
      cotangent: [B, n].
      count: how many steps; may be traced: the loop takes as many rounds.
      careful: whether to choose 0 where nothing depends on a lane's state any more, as derivatives may
        be infinite there; without, 0 is multiplied.
      groups: P, the groups of lanes that gradients are summed over.
    """
    size = len(kept.steps.keep)
    sites = kept.steps.sites
    run = min(_RUN, size)

    def products(inputs: list[Array], deltas: list[Array]) -> GroupedGradients:
        return tuple(jnp.einsum("lbtm,lbtg->mg", x, d) for x, d in zip(inputs, deltas))

    def back(i: Any, state: tuple[Array, list[Array], list[Array]]) -> Any:
        c, inputs, deltas = state
        t = (kept.next - 1 - i) % size
        step = jax.tree.map(
            lambda ring: jax.lax.dynamic_index_in_dim(ring, t, axis=0, keepdims=False), kept.steps
        )
        lanes = jnp.any(c != 0, axis=1)

        def choose(x: Array) -> Array:
            return jnp.where(along(lanes, x), x, 0) if careful else x

        def write(found: list[Array], new: list[Array]) -> list[Array]:
            return [
                jax.lax.dynamic_update_index_in_dim(buffer, choose(x), i % run, axis=0)
                for buffer, x in zip(found, new)
            ]

        inputs = write(inputs, [site.inputs for site in step.sites])
        deltas = write(deltas, [site.derivatives.vector_times(c) for site in step.sites])
        return choose(step.jacobian.vector_times(c)), inputs, deltas

    def back_a_run(j: Any, state: tuple[Array, GroupedGradients]) -> Any:
        c, gradients = state
        inputs = [jnp.zeros((run, *s.inputs.shape[1:]), s.inputs.dtype) for s in sites]
        deltas = [
            jnp.zeros((*x.shape[:-1], s.derivatives.shape[1]), cotangent.dtype)
            for x, s in zip(inputs, sites)
        ]
        stop = jnp.minimum((j + 1) * run, count)
        c, inputs, deltas = jax.lax.fori_loop(j * run, stop, back, (c, inputs, deltas))
        new = grouped(products, (1, 1), groups)(inputs, deltas)
        return c, tuple(map(jnp.add, gradients, new))

    zeros = tuple(
        jnp.zeros((groups, s.inputs.shape[-1], s.derivatives.shape[1]), cotangent.dtype)
        for s in sites
    )
    cotangent, gradients = jax.lax.fori_loop(
        0, (count + run - 1) // run, back_a_run, (cotangent, zeros)
    )
    age = (kept.next - 1 - jnp.arange(size)) % size
    started = jnp.any((kept.steps.keep == 0) & (age < count)[:, None], axis=0)
    return Backward(cotangent, gradients, started)
