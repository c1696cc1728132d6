"""Checks the linearization of a cell against the cell itself and JAX's own differentiation of it.

A wrong gradient is silent: training continues, only worse. So J, the derivative of the new state by
every parameter, and the gradient of a whole segment are compared with `jax.vjp` of the unmodified cell,
at random points; and so is what the step computes, its new carry and its output.
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

from kfrtrl_jax._src.base import Cell
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.lanes import is_key
from kfrtrl_jax._src.linearization.check_comparison import Compared, Pair, compare, deviation
from kfrtrl_jax._src.linearization.check_points import LANES, Points, draw, in_double
from kfrtrl_jax._src.linearization.linearizer import Linearizer, make_linearizer
from kfrtrl_jax._src.linearization.suspect import suspect
from kfrtrl_jax._src.xla import known

# An optimizing compilation would take longer than the run.
_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

_BUG = "This is a bug in the library"


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
      values: the largest deviation of a leaf of the new carry or the output from the cell's own.
    """

    precision: str
    jacobian: float
    parameters: dict[str, float]
    segment: float
    tolerance: float
    points: int
    seconds: float
    values: float = 0.0

    def __str__(self) -> str:
        if not self.points:
            return (
                f"linearization not checked: the derivatives of this cell by jax.vjp are not finite at "
                f"any of the points that were tried, so that gradients may not be either (those of a "
                f"jnp.where go through both of its branches; {self.seconds:.1f} s)"
            )
        worst = max([self.values, self.jacobian, self.segment, *self.parameters.values()])
        return (
            f"linearization checked against jax.vjp in {self.precision}: largest deviation {worst:.1e} "
            f"({self.seconds:.1f} s)"
        )


def check(cell: Cell, example_input: Any, *, seed: int = 0) -> Check:
    """Compares a cell's linearization with JAX's differentiation of it, and its values with its own.

    Parameters, carries and inputs are drawn at random; the cell's own initial state and restarts are
    among the points. Points where `jax.vjp` is not finite are not compared; if it is finite at none,
    the result says so. Integer inputs are 0 or 1.

    Args:
      cell: for one lane.
      example_input: one lane's input, for its shape and type.
      seed: of the draws.

    Raises:
      UnsupportedCellError: if the cell has no linearization, see `make_linearizer`, or if that differs
        from `jax.vjp`, naming the parameter and the operation, or computes another carry or output.
    """
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        wide = in_double(cell, example_input)
        if wide is not None:
            stack.enter_context(jax.enable_x64(True))
            cell = wide
        draws = draw(cell, example_input, np.random.default_rng(seed))
        example = jax.tree.map(lambda x: x[0, 0], draws.inputs)
        linearizer = make_linearizer(cell, example, LANES)
        # One program, as op-by-op execution would compile every operation separately.
        compared = jax.jit(
            functools.partial(compare, cell, linearizer, seed), compiler_options=known(_QUICKLY)
        )
        return _report(cell, linearizer, jax.tree.map(_on_host, compared(draws)), began)


def _on_host(leaf: Any) -> Any:
    return leaf if is_key(leaf) else np.asarray(leaf)


def _report(cell: Cell, linearizer: Linearizer, found: Compared, began: float) -> Check:
    points = found.points
    dtype = jnp.dtype(linearizer.structure.dtype)
    tolerance = 10 * math.sqrt(float(jnp.finfo(dtype).eps))
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/") or "(the whole of params)"
        for path, leaf in jax.tree_util.tree_flatten_with_path(points.params)[0]
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    pair = found.parameters
    # The deviation of a parameter with a negligible gradient is relative to the whole gradient.
    whole = math.sqrt(sum(float(np.sum(np.abs(g.astype(np.complex128)) ** 2)) for g in pair.theirs))
    parameters = {
        path: deviation(Pair(ours, theirs), 1e-3 * whole)
        for path, ours, theirs in zip(paths, pair.ours, pair.theirs, strict=True)
    }
    jacobian = max(deviation(found.jacobian), deviation(found.factored))
    if np.any(found.starts != 0):
        jacobian = math.inf
    segment_pair = found.segment
    segment = max(deviation(Pair(segment_pair.ours[i], segment_pair.theirs[i])) for i in range(2))
    report = Check(
        precision=dtype.name,
        jacobian=jacobian,
        parameters=parameters,
        segment=segment,
        tolerance=tolerance,
        points=int(found.finite.sum()),
        seconds=time.perf_counter() - began,
        # Of a leaf that is 0, rounding alone is left.
        values=max((deviation(Pair(*leaf), 1e-3) for leaf in zip(*found.values)), default=0.0),
    )
    wrong = {path: error for path, error in parameters.items() if not error <= tolerance}
    if wrong or not jacobian <= tolerance or not segment <= tolerance:
        raise UnsupportedCellError(_message(cell, points, report, wrong, segment_pair, paths))
    if not report.values <= tolerance:
        raise UnsupportedCellError(
            f"the new carry or the output of this cell, as the library computes it, differs by "
            f"{report.values:.1e} of its size from what the cell's own step gives; predictions would "
            f"be silently wrong. {_BUG}: please report the cell"
        )
    return report


def _message(
    cell: Cell,
    points: Points,
    report: Check,
    wrong: dict[str, float],
    segment: Pair,
    paths: Sequence[str],
) -> str:
    if not wrong and not report.segment <= report.tolerance:
        errors = {
            path: deviation(Pair(ours, theirs))
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
        f"size from that of jax.vjp{where}; gradients would be silently wrong. {_BUG}: please report "
        f"the cell, and rewrite that operation as a workaround"
    )
