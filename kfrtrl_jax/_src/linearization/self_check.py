"""Checks the linearization of a cell against JAX's own differentiation of it.

A wrong gradient is silent: training continues, only worse. So J, the derivative of the new state by
every parameter, and the gradient of a whole segment are compared with `jax.vjp` of the unmodified cell,
at random points.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Array, Cell
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.lanes import along, initial_lanes, is_key, restarted
from kfrtrl_jax._src.linearization.complex_numbers import real_leaves
from kfrtrl_jax._src.linearization.linearizer import Linearizer, make_linearizer
from kfrtrl_jax._src.linearization.suspect import suspect
from kfrtrl_jax._src.matrices import BlockColumns
from kfrtrl_jax._src.xla import known

# The first lane continues from where a few steps led, the second from near that point; the third is at
# the cell's initial state, and the fourth starts anew there.
_LANES = 4
_KEEP = (1.0, 1.0, 1.0, 0.0)
# Sizes of the cotangents; a large one reveals derivative rules that are linear only for small ones.
_SIZES = (1.0, 100.0, 1.0, 1.0)
_STEPS = 3
# An optimizing compilation would take longer than the run.
_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Check(NamedTuple):
    """The deviations |difference| / |result of `jax.vjp`|; `str` of it is one line.

    Attributes:
      precision: of the numbers, "float64" if the cell and the platform allow it.
      jacobian: the largest deviation of J.
      parameters: by path, the deviation of the derivative of the new state by the parameter.
      segment: the largest deviation of the gradient of a segment, by parameters and by its first carry.
      tolerance: the largest deviation that counts as rounding.
      points: the number of points at which `jax.vjp` was finite and could be compared.
      seconds: the duration of the check.
    """

    precision: str
    jacobian: float
    parameters: dict[str, float]
    segment: float
    tolerance: float
    points: int
    seconds: float

    def __str__(self) -> str:
        worst = max([self.jacobian, self.segment, *self.parameters.values()])
        return (
            f"linearization checked against jax.vjp in {self.precision}: largest deviation {worst:.1e} "
            f"({self.seconds:.1f} s)"
        )


def check(cell: Cell, example_input: Any, *, seed: int = 0) -> Check:
    """Compares a cell's linearization with JAX's own differentiation of it.

    Parameters, carries and inputs are drawn at random; the cell's own initial state and restarts are
    among the points. Points where `jax.vjp` is not finite are not compared. Integer inputs are 0 or 1.

    Args:
      cell: for one lane.
      example_input: one lane's input, for its shape and type.
      seed: of the draws.

    Raises:
      UnsupportedCellError: if the cell has no linearization, see `make_linearizer`, or if that differs
        from `jax.vjp`, naming the parameter and the operation.
    """
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        wide = in_double(cell, example_input)
        if wide is not None:
            stack.enter_context(jax.enable_x64(True))
            cell = wide
        draws = _draw(cell, example_input, np.random.default_rng(seed))
        example = jax.tree.map(lambda x: x[0, 0], draws.inputs)
        linearizer = make_linearizer(cell, example, _LANES)
        # One program, as op-by-op execution would compile every operation separately.
        compare = jax.jit(
            functools.partial(_compare, cell, linearizer, seed), compiler_options=known(_QUICKLY)
        )
        return _report(cell, linearizer, jax.tree.map(_on_host, compare(draws)), began)


def _on_host(leaf: Any) -> Any:
    return leaf if is_key(leaf) else np.asarray(leaf)


class _Draws(NamedTuple):
    """The random numbers of a check, drawn before the cell is called.

    Attributes:
      inputs: [T, B, ...].
      cotangents: of the new state, [B, n].
      parameters: for each float leaf of the parameters, its change from the initial value: a factor and
        an addend.
      carry: for each float leaf of the carry [B, ...], the same.
      outputs: the weights of the real leaves of the output in the segment's loss.
      last: the weights of the real leaves of the last carry in it.
    """

    inputs: Any
    cotangents: Any
    parameters: Any
    carry: Any
    outputs: Any
    last: Any


class _Points(NamedTuple):
    """The points of comparison: parameters, carry [B, ...], inputs [T, B, ...], reset [T, B]."""

    params: Any
    carry: Any
    inputs: Any
    reset: Any


class _Pair(NamedTuple):
    """A result of the linearization, and that of JAX."""

    ours: Any
    theirs: Any


def _floats(tree: Any) -> tuple[list[Any], Any]:
    """The float leaves, and a function that puts such leaves back into the tree."""
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.inexact)]

    def join(floats: Sequence[Any]) -> Any:
        whole = list(leaves)
        for i, x in zip(places, floats):
            whole[i] = x
        return jax.tree.unflatten(treedef, whole)

    return [leaves[i] for i in places], join


def widened(leaf: Any) -> Any:
    """An array, or its shape and dtype, in double precision."""
    leaf = _array(leaf)
    dtype = leaf.dtype
    if jnp.issubdtype(dtype, jnp.inexact):
        dtype = np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, dtype)
    return leaf if dtype == leaf.dtype else leaf.astype(dtype)


def in_double(cell: Cell, example_input: Any) -> Cell | None:
    """The cell in double precision; None if the cell or the device does not support that."""
    if jax.default_backend() not in ("cpu", "gpu"):
        return None
    wide = cell._replace(
        init=lambda key: jax.tree.map(widened, cell.init(key)),
        initial_carry=lambda: jax.tree.map(widened, cell.initial_carry()),
    )

    def types(tree: Any) -> list[Any]:
        return [leaf.dtype for leaf in jax.tree.leaves(tree)]

    def one_step() -> tuple[Any, Any]:
        carry = wide.initial_carry()
        x = jax.tree.map(lambda leaf: _zeros(widened(leaf)), example_input)
        return carry, wide.step(wide.init(jax.random.key(0)), carry, x)[0]

    with jax.enable_x64(True):
        try:
            before, after = jax.eval_shape(one_step)
        except Exception:
            return None  # in its own precision the cell raises its own error
    return wide if types(before) == types(after) else None


def _array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)


def _draw(cell: Cell, example_input: Any, generator: np.random.Generator) -> _Draws:
    def normal(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        values = generator.normal(size=shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            values = values + 1j * generator.normal(size=shape)
        return values.astype(dtype)

    def change(leaf: Any) -> tuple[np.ndarray, np.ndarray]:
        factor = 1 + 0.1 * normal(leaf.shape, leaf.dtype)
        addend = 0.01 * normal(leaf.shape, leaf.dtype)
        # NumPy computes with bfloat16 in more bits.
        return factor.astype(leaf.dtype), addend.astype(leaf.dtype)

    def an_input(leaf: Any) -> Any:
        shape = (_STEPS, _LANES, *leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return normal(shape, leaf.dtype)
        if is_key(leaf):
            return jnp.broadcast_to(jax.random.key(0), shape)
        return generator.integers(0, 2, shape).astype(leaf.dtype)

    example = jax.tree.map(widened if _is_wide() else _array, example_input)
    params, lanes, output = jax.eval_shape(
        lambda: (
            params := cell.init(jax.random.key(0)),
            initial_lanes(cell, _LANES),
            cell.step(params, cell.initial_carry(), jax.tree.map(jnp.zeros_like, example))[1],
        )
    )
    floats = _floats(lanes)[0]
    parts = _real_shapes(lanes)
    n = sum(math.prod(x.shape[1:]) for x in parts)
    cotangents = normal((_LANES, n), jnp.result_type(*(x.dtype for x in parts)))
    return _Draws(
        inputs=jax.tree.map(an_input, example),
        cotangents=cotangents * np.asarray(_SIZES, cotangents.dtype)[:, None],
        parameters=[change(x) for x in _floats(params)[0]],
        carry=[change(x) for x in floats],
        outputs=[normal(x.shape, x.dtype) for x in _real_shapes(output)],
        last=[normal(x.shape[1:], x.dtype) for x in parts],
    )


def _is_wide() -> bool:
    return jnp.zeros(()).dtype == np.float64


def _real_shapes(tree: Any) -> list[Any]:
    leaves = jax.eval_shape(lambda: real_leaves(jax.tree.map(_zeros, tree)))
    return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]


def _zeros(leaf: Any) -> Any:
    return leaf if is_key(leaf) else jnp.zeros(leaf.shape, leaf.dtype)


def _changed(tree: Any, changes: Sequence[tuple[Any, Any]]) -> Any:
    floats, join = _floats(tree)
    return join([factor * x + addition for x, (factor, addition) in zip(floats, changes)])


def _points(cell: Cell, seed: int, draws: _Draws) -> _Points:
    """Parameters near the initial ones; carries that they lead to, or near that, or initial ones."""
    params = _changed(cell.init(jax.random.key(seed)), draws.parameters)
    first = initial_lanes(cell, _LANES)

    def step(carry: Any, x: Any) -> tuple[Any, None]:
        return jax.vmap(lambda c, x: cell.step(params, c, x)[0])(carry, x), None

    last, _ = jax.lax.scan(step, first, draws.inputs)
    carry = jax.tree.map(
        lambda first, last, beside: jnp.stack([last[0], beside[1], *first[2:]]),
        first,
        last,
        _changed(last, draws.carry),
    )
    reset = np.zeros((_STEPS, _LANES), bool)
    reset[1, 1] = True
    return _Points(params, carry, draws.inputs, jnp.asarray(reset))


def _compare(cell: Cell, linearizer: Linearizer, seed: int, draws: _Draws) -> dict[str, Any]:
    draws = jax.tree.map(jnp.asarray, draws)
    points = _points(cell, seed, draws)
    return {
        **_compare_step(cell, linearizer, points, draws),
        "segment": _compare_segment(cell, linearizer, points, draws),
        "points": points,
    }


def _compare_step(
    cell: Cell, linearizer: Linearizer, points: _Points, draws: _Draws
) -> dict[str, Any]:
    """v^T J for every lane, and the derivative of v^T s by every parameter, summed over lanes."""
    params, carry, v = points.params, points.carry, draws.cotangents
    x = jax.tree.map(lambda leaf: leaf[0], points.inputs)
    structure = linearizer.structure
    keep = jnp.asarray(_KEEP, structure.dtype)
    linearization = linearizer.linearize(params, carry, x, keep)
    jacobian = linearization.jacobian
    ours = jnp.concatenate([block.vector_times(v) for block in jacobian.blocks], axis=-1)
    starts = ours[-1]
    # Entries that are zero by the structure are set to zero, as estimators ignore them.
    if structure.jacobian_mask is not None:
        nonzero = jnp.where(structure.jacobian_mask.array, jacobian.dense(), 0)
        ours = jnp.einsum("bn,bnm->bm", v, nonzero)
    u = v[:, :, None]
    factored = _Pair((), ())
    if jacobian.products:
        factored = _Pair(jacobian.times_few(u)[:2], BlockColumns(jacobian.blocks).times(u)[:2])

    params_floats, join_params = _floats(params)

    def theirs(lane: Any) -> tuple[Any, Any]:
        """For one lane: under `jax.vmap` all branches of conditionals would be taken."""
        carry, x, v = lane
        floats, join = _floats(carry)

        def state(params_floats: Any, floats: Any) -> Array:
            new, _ = cell.step(join_params(params_floats), join(floats), x)
            return linearizer.flatten(jax.tree.map(lambda leaf: leaf[None], new))[0]

        _, pullback = jax.vjp(state, params_floats, floats)
        by_params, by_carry = pullback(v)
        return by_params, linearizer.flatten_cotangent(
            jax.tree.map(lambda leaf: leaf[None], join(by_carry))
        )[0]

    by_params, by_carry = jax.lax.map(theirs, (carry, x, v))
    finite = jnp.stack(
        [jnp.all(jnp.isfinite(g), axis=tuple(range(1, g.ndim))) for g in by_params]
    ).all(axis=0)

    def block(site: Any, shape: Any) -> Array:
        by_state = site.derivatives.vector_times(v)
        if shape.derivative_mask is not None:
            nonzero = jnp.where(shape.derivative_mask.array, site.derivatives.dense(), 0)
            by_state = jnp.einsum("bn,btng->btg", v, nonzero)
        lanes = jnp.einsum("btm,btg->bmg", site.inputs, by_state)
        if shape.weights_mask is not None:
            lanes = jnp.where(shape.weights_mask.array, lanes, 0)
        return jnp.sum(jnp.where(finite[:, None, None], lanes, 0), axis=0)

    blocks = tuple(map(block, linearization.sites, structure.sites))
    gradient = jax.tree.leaves(linearizer.gradient(params, blocks))
    summed = [jnp.sum(jnp.where(along(finite, g), g, 0), axis=0) for g in by_params]
    return {
        "jacobian": _Pair(ours[:-1], by_carry[:-1]),
        "factored": factored,
        "starts": starts,
        "parameters": _Pair(gradient, summed),
        "finite": finite,
    }


def _compare_segment(cell: Cell, linearizer: Linearizer, points: _Points, draws: _Draws) -> _Pair:
    """The gradient of a random linear function of outputs and last carry, over a restart."""
    taps, params = linearizer.taps, points.params
    params_floats, join_params = _floats(params)

    def weighted(tree: Any, weights: Sequence[Any]) -> Array:
        """A random linear function of one lane's output or carry."""
        leaves = [x for x in real_leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
        return sum((jnp.sum(x * w) for x, w in zip(leaves, weights)), start=jnp.zeros(()))

    def by_taps(zeros: Any, live: Any, floats: Any) -> tuple[Array, Any]:
        def one(carry: Any, step: Any) -> tuple[Any, Any]:
            x, reset, tap = step
            advance = jax.vmap(lambda c, x, tap: taps.step(params, live, c, x, tap))
            carry, output, data = advance(restarted(cell, carry, reset), x, tap)
            return carry, (jax.vmap(lambda o: weighted(o, draws.outputs))(output), data)

        steps = (points.inputs, points.reset, zeros)
        last, (losses, data) = jax.lax.scan(one, join(floats), steps)
        end = jax.vmap(lambda c: weighted(c, draws.last))(last)
        return jnp.sum(losses) + jnp.sum(end), data

    floats, join = _floats(points.carry)
    zeros = [jnp.zeros((_STEPS, _LANES, *z.shape), z.dtype) for z in taps.zeros]
    (by_zeros, by_live, by_start), data = jax.grad(by_taps, argnums=(0, 1, 2), has_aux=True)(
        zeros, taps.live_leaves(params), floats
    )
    ours = linearizer.gradient(params, taps.site_gradients(data, by_zeros), by_live)

    def lane(lane: Any) -> tuple[Any, Any]:
        carry, inputs, reset = lane
        lane_floats, lane_join = _floats(carry)

        def loss(params_floats: Any, lane_floats: Any) -> Array:
            params = join_params(params_floats)

            def one(carry: Any, step: Any) -> tuple[Any, Array]:
                x, reset = step
                alone = jax.tree.map(lambda leaf: leaf[None], carry)
                start = jax.tree.map(lambda leaf: leaf[0], restarted(cell, alone, reset[None]))
                carry, output = cell.step(params, start, x)
                return carry, weighted(output, draws.outputs)

            last, losses = jax.lax.scan(one, lane_join(lane_floats), (inputs, reset))
            return jnp.sum(losses) + weighted(last, draws.last)

        return jax.grad(loss, argnums=(0, 1))(params_floats, lane_floats)

    by_lane = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), points.inputs)
    by_params, by_carry = jax.lax.map(lane, (points.carry, by_lane, points.reset.T))
    summed = [jnp.sum(g, axis=0) for g in by_params]
    return _Pair((jax.tree.leaves(ours), by_start), (summed, by_carry))


def _deviation(pair: _Pair, scale: float = 0.0) -> float:
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


def _report(cell: Cell, linearizer: Linearizer, found: dict[str, Any], began: float) -> Check:
    points = found["points"]
    dtype = jnp.dtype(linearizer.structure.dtype)
    tolerance = 10 * math.sqrt(float(jnp.finfo(dtype).eps))
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/") or "(the whole of params)"
        for path, leaf in jax.tree_util.tree_flatten_with_path(points.params)[0]
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    pair = found["parameters"]
    # The deviation of a parameter with a negligible gradient is relative to the whole gradient.
    whole = math.sqrt(sum(float(np.sum(np.abs(g.astype(np.complex128)) ** 2)) for g in pair.theirs))
    parameters = {
        path: _deviation(_Pair(ours, theirs), 1e-3 * whole)
        for path, ours, theirs in zip(paths, pair.ours, pair.theirs, strict=True)
    }
    jacobian = max(_deviation(found["jacobian"]), _deviation(found["factored"]))
    if np.any(found["starts"] != 0):
        jacobian = math.inf
    segment_pair = found["segment"]
    segment = max(_deviation(_Pair(segment_pair.ours[i], segment_pair.theirs[i])) for i in range(2))
    report = Check(
        precision=dtype.name,
        jacobian=jacobian,
        parameters=parameters,
        segment=segment,
        tolerance=tolerance,
        points=int(found["finite"].sum()),
        seconds=time.perf_counter() - began,
    )
    wrong = {path: error for path, error in parameters.items() if not error <= tolerance}
    if wrong or not jacobian <= tolerance or not segment <= tolerance:
        raise UnsupportedCellError(_message(cell, points, report, wrong, segment_pair, paths))
    return report


def _message(
    cell: Cell,
    points: _Points,
    report: Check,
    wrong: dict[str, float],
    segment: _Pair,
    paths: Sequence[str],
) -> str:
    if not wrong and not report.segment <= report.tolerance:
        errors = {
            path: _deviation(_Pair(ours, theirs))
            for path, ours, theirs in zip(paths, segment.ours[0], segment.theirs[0])
        }
        wrong = {path: error for path, error in errors.items() if not error <= report.tolerance}
    what = "the state Jacobian"
    if wrong:
        worst = max(wrong, key=lambda path: wrong[path])
        what = f"the gradient by the parameter {worst}"
    error = max([report.jacobian, report.segment, *report.parameters.values(), *wrong.values()])
    lane = jax.tree.map(lambda leaf: leaf[0], (points.carry, points.inputs))
    x = jax.tree.map(lambda leaf: leaf[0], lane[1])
    where = suspect(cell, points.params, lane[0], x, list(wrong))
    return (
        f"the linearization of this cell is not its derivative: {what} differs by {error:.1e} of its "
        f"size from that of jax.vjp{where}; gradients would be silently wrong. This is a bug in the "
        f"library: please report the cell, and rewrite that operation as a workaround"
    )
