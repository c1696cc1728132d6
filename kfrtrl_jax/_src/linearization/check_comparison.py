"""A cell's linearization beside JAX's own differentiation of the cell, at the same points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Array, Cell, Site, SiteJacobian, Structure
from kfrtrl_jax._src.lanes import along, is_key, restarted
from kfrtrl_jax._src.linearization.check_points import (
    LANES,
    STEPS,
    Draws,
    Points,
    floats_of,
    points_of,
)
from kfrtrl_jax._src.linearization.complex_numbers import real_leaves
from kfrtrl_jax._src.linearization.linearizer import Linearizer
from kfrtrl_jax._src.matrices import BlockColumns

# The last lane starts anew.
_KEEP = (1.0, 1.0, 1.0, 0.0)


class Pair(NamedTuple):
    """A result of the linearization, and that of JAX."""

    ours: Any
    theirs: Any


class Compared(NamedTuple):
    """What has been computed twice.

    Attributes:
      points: where.
      values: what the step itself computes: leaves of the new carry, and of the output, [B, ...].
      finite: at which of the lanes JAX's derivatives by the parameters are finite, [B].
      jacobian: v^T J of the lanes that go on.
      starts: v^T J of the lane that starts anew, which is 0.
      factored: J v by the factors of products in J, and without them; two trees, or nothing.
      parameters: the derivative of v^T s by every parameter, summed over lanes.
      segment: of a loss along several steps: its derivatives by the parameters, and by the first carry.
    """

    points: Points
    values: Pair
    finite: Array
    jacobian: Pair
    starts: Array
    factored: Pair
    parameters: Pair
    segment: Pair


def compare(cell: Cell, linearizer: Linearizer, seed: int, draws: Draws) -> Compared:
    """Linearizes and differentiates at the points that were drawn.

    Args:
      cell: for one lane.
      linearizer: of it.
      seed: of its initial parameters.
      draws: for the cell.
    """
    draws = jax.tree.map(jnp.asarray, draws)
    points = points_of(cell, seed, draws)
    by_params, by_carry = _pulled_back(cell, linearizer, points, draws.cotangents)
    finite = jnp.stack(
        [jnp.all(jnp.isfinite(g), axis=tuple(range(1, g.ndim))) for g in by_params]
    ).all(axis=0)
    summed = [jnp.sum(jnp.where(along(finite, g), g, 0), axis=0) for g in by_params]

    x = jax.tree.map(lambda leaf: leaf[0], points.inputs)
    keep = jnp.asarray(_KEEP, linearizer.structure.dtype)
    linearization = linearizer.linearize(points.params, points.carry, x, keep)
    jacobian, starts = _by_jacobian(linearizer.structure, linearization.jacobian, draws.cotangents)
    gradient = _by_sites(linearizer, points.params, linearization.sites, draws.cotangents, finite)
    return Compared(
        points=points,
        values=_compare_values(cell, linearizer, points, x),
        finite=finite,
        jacobian=Pair(jacobian[:-1], by_carry[:-1]),
        starts=starts,
        factored=_by_factors(linearization.jacobian, draws.cotangents),
        parameters=Pair(gradient, summed),
        segment=_compare_segment(cell, linearizer, points, draws),
    )


def _compare_values(cell: Cell, linearizer: Linearizer, points: Points, x: Any) -> Pair:
    """The new carry and the output of a step at every point."""
    taps, params = linearizer.taps, points.params

    def ours(lane: Any) -> Any:
        live = taps.live_leaves(params)
        return taps.step(params, live, *lane, taps.zeros)[:2]

    def theirs(lane: Any) -> Any:
        return cell.step(params, *lane)

    lanes = (points.carry, x)
    return Pair(*(_numbers(jax.lax.map(step, lanes)) for step in (ours, theirs)))


def _numbers(tree: Any) -> list[Array]:
    """The leaves of a tree, PRNG keys by their bits."""
    return [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]


def _by_jacobian(structure: Structure, jacobian: Any, v: Array) -> tuple[Array, Array]:
    """(v^T J as estimators see it, [B, n]; that of the last lane with all entries, [n])."""
    whole = jnp.concatenate([block.vector_times(v) for block in jacobian.blocks], axis=-1)
    # Entries that are zero by the structure are set to zero, as estimators ignore them.
    if structure.jacobian_mask is None:
        return whole, whole[-1]
    nonzero = jnp.where(structure.jacobian_mask.array, jacobian.dense(), 0)
    return jnp.einsum("bn,bnm->bm", v, nonzero), whole[-1]


def _by_factors(jacobian: Any, v: Array) -> Pair:
    """J v, if J has products: by their factors, and by the blocks that they make."""
    if not jacobian.products:
        return Pair((), ())
    u = v[:, :, None]
    return Pair(jacobian.times_few(u)[:2], BlockColumns(jacobian.blocks).times(u)[:2])


def _by_sites(
    linearizer: Linearizer, params: Any, sites: Sequence[SiteJacobian], v: Array, finite: Array
) -> list[Array]:
    """The derivative of v^T s by every parameter, summed over the lanes that are finite."""

    def block(jacobian: SiteJacobian, site: Site) -> Array:
        by_state = jacobian.derivatives.vector_times(v)
        if site.derivative_mask is not None:
            nonzero = jnp.where(site.derivative_mask.array, jacobian.derivatives.dense(), 0)
            by_state = jnp.einsum("bn,btng->btg", v, nonzero)
        lanes = jnp.einsum("btm,btg->bmg", jacobian.inputs, by_state)
        if site.weights_mask is not None:
            lanes = jnp.where(site.weights_mask.array, lanes, 0)
        return jnp.sum(jnp.where(finite[:, None, None], lanes, 0), axis=0)

    blocks = tuple(map(block, sites, linearizer.structure.sites))
    return jax.tree.leaves(linearizer.gradient(params, blocks))


def _pulled_back(
    cell: Cell, linearizer: Linearizer, points: Points, v: Array
) -> tuple[list[Array], Array]:
    """Of v^T s in every lane, by `jax.vjp`: the derivatives by the parameters, [B, ...], and v^T J."""
    params_floats, join_params = floats_of(points.params)

    def of_lane(lane: Any) -> tuple[Any, Any]:
        """For one lane: under `jax.vmap` all branches of conditionals would be taken."""
        carry, x, v = lane
        floats, join = floats_of(carry)

        def state(params_floats: Any, floats: Any) -> Array:
            new, _ = cell.step(join_params(params_floats), join(floats), x)
            return linearizer.flatten(jax.tree.map(lambda leaf: leaf[None], new))[0]

        _, pullback = jax.vjp(state, params_floats, floats)
        by_params, by_carry = pullback(v)
        return by_params, linearizer.flatten_cotangent(
            jax.tree.map(lambda leaf: leaf[None], join(by_carry))
        )[0]

    x = jax.tree.map(lambda leaf: leaf[0], points.inputs)
    return jax.lax.map(of_lane, (points.carry, x, v))


def _compare_segment(cell: Cell, linearizer: Linearizer, points: Points, draws: Draws) -> Pair:
    """The gradient of a random linear function of outputs and last carry, over a restart."""
    ours = _by_taps(cell, linearizer, points, draws)
    by_params, by_carry = _backpropagated(cell, points, draws)
    return Pair(ours, ([jnp.sum(g, axis=0) for g in by_params], by_carry))


def _by_taps(
    cell: Cell, linearizer: Linearizer, points: Points, draws: Draws
) -> tuple[list[Array], list[Array]]:
    """The derivatives of that function by the parameters, and by the floats of the carry."""
    taps, params = linearizer.taps, points.params
    floats, join = floats_of(points.carry)

    def loss(zeros: Any, live: Any, floats: Any) -> tuple[Array, Any]:
        def one(carry: Any, step: Any) -> tuple[Any, Any]:
            x, reset, tap = step
            advance = jax.vmap(lambda c, x, tap: taps.step(params, live, c, x, tap))
            carry, output, data = advance(restarted(cell, carry, reset), x, tap)
            return carry, (jax.vmap(lambda o: _weighted(o, draws.outputs))(output), data)

        steps = (points.inputs, points.reset, zeros)
        last, (losses, data) = jax.lax.scan(one, join(floats), steps)
        end = jax.vmap(lambda c: _weighted(c, draws.last))(last)
        return jnp.sum(losses) + jnp.sum(end), data

    zeros = [jnp.zeros((STEPS, LANES, *z.shape), z.dtype) for z in taps.zeros]
    (by_zeros, by_live, by_start), data = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(
        zeros, taps.live_leaves(params), floats
    )
    gradient = linearizer.gradient(params, taps.site_gradients(data, by_zeros), by_live)
    return jax.tree.leaves(gradient), by_start


def _backpropagated(cell: Cell, points: Points, draws: Draws) -> tuple[list[Array], list[Array]]:
    """The same by `jax.grad` of the cell, for each lane: [B, ...]."""
    params_floats, join_params = floats_of(points.params)

    def of_lane(lane: Any) -> tuple[Any, Any]:
        carry, inputs, reset = lane
        floats, join = floats_of(carry)

        def loss(params_floats: Any, floats: Any) -> Array:
            params = join_params(params_floats)

            def one(carry: Any, step: Any) -> tuple[Any, Array]:
                x, reset = step
                alone = jax.tree.map(lambda leaf: leaf[None], carry)
                start = jax.tree.map(lambda leaf: leaf[0], restarted(cell, alone, reset[None]))
                carry, output = cell.step(params, start, x)
                return carry, _weighted(output, draws.outputs)

            last, losses = jax.lax.scan(one, join(floats), (inputs, reset))
            return jnp.sum(losses) + _weighted(last, draws.last)

        return jax.grad(loss, argnums=(0, 1))(params_floats, floats)

    by_lane = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), points.inputs)
    return jax.lax.map(of_lane, (points.carry, by_lane, points.reset.T))


def _weighted(tree: Any, weights: Sequence[Any]) -> Array:
    """A random linear function of one lane's output or carry."""
    leaves = [x for x in real_leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return sum((jnp.sum(x * w) for x, w in zip(leaves, weights)), start=jnp.zeros(()))


def deviation(pair: Pair, scale: float = 0.0) -> float:
    """|ours - theirs| / |theirs| where theirs is finite; infinite if ours is not finite there."""
    total, size = 0.0, 0.0
    for ours, theirs in zip(jax.tree.leaves(pair.ours), jax.tree.leaves(pair.theirs), strict=True):
        finite = np.isfinite(theirs)
        difference = np.where(finite, ours, 0) - np.where(finite, theirs, 0)
        if not np.all(np.isfinite(difference)):
            return math.inf
        total += float(np.sum(np.abs(difference.astype(np.complex128)) ** 2))
        size += float(np.sum(np.abs(np.where(finite, theirs, 0).astype(np.complex128)) ** 2))
    if total == 0:
        return 0.0
    return math.sqrt(total) / max(math.sqrt(size), scale, 1e-300)
