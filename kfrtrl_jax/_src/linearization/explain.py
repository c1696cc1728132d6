"""A report, in words, of the structure that the linearization finds in a cell."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Cell, InfluenceEstimator, Linearization, Mask, Structure
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.estimators.registry import ESTIMATORS
from kfrtrl_jax._src.linearization.linearizer import Linearizer, make_linearizer
from kfrtrl_jax._src.linearization.self_check import Check
from kfrtrl_jax._src.linearization.self_check import check as compare
from kfrtrl_jax._src.matrices import Banded, Group, Shared
from kfrtrl_jax._src.sizes import bytes_of

# How the refusals of estimators begin.
_PREFIX = re.compile(r"^\w+ cannot use this cell: ")


class Cost(NamedTuple):
    """The cost of an estimator on a cell.

    Attributes:
      state_bytes: of its state, for all lanes together; None if it refuses the cell.
      flops: floating-point operations of one push, as XLA counts them before it optimizes.
      refusal: why it refuses the cell, or "".
    """

    state_bytes: int | None
    flops: float | None
    refusal: str


class Explanation(NamedTuple):
    """The structure of a cell; `str` of it is the report.

    Attributes:
      structure: with the sites.
      derivatives: for each site, the kind of its D ("dense", "diagonal", ...).
      jacobian: for each leaf of the carry, the kind of its columns of J.
      direct: paths of parameters that never reach the state and have only a direct gradient.
      linearization_flops: floating-point operations to compute J and every D of one step, for all lanes
        together, as XLA counts them before it optimizes.
      costs: by estimator.
      check: the comparison with `jax.vjp`; None if it was not requested.
    """

    structure: Structure
    derivatives: tuple[str, ...]
    jacobian: tuple[str, ...]
    direct: tuple[str, ...]
    linearization_flops: float
    costs: dict[str, Cost]
    check: Check | None

    def __str__(self) -> str:
        lines = [
            f"state: n = {self.structure.state_size}, {self.structure.batch_size} lanes of "
            f"{jnp.dtype(self.structure.dtype).name}; "
            f"J by leaf of the carry: {', '.join(self.jacobian)}"
            f"{_density(self.structure.jacobian_mask)}"
        ]
        for site, derivative in zip(self.structure.sites, self.derivatives):
            lines.append(
                f"site: [{site.input_size} x {site.output_size}] of {site.label}"
                f"{f', used {site.uses} times a step' if site.uses > 1 else ''}"
                f"{_density(site.weights_mask)}; D {derivative}{_density(site.derivative_mask)}"
            )
        if self.direct:
            lines.append(f"direct gradient only: {', '.join(self.direct)}")
        lines += [f"no structure: {problem}" for problem in self.structure.problems]
        lines.append(f"J and D: {self.linearization_flops:.3g} floating-point operations per step")
        for name, cost in self.costs.items():
            if cost.state_bytes is None:
                reason = _PREFIX.sub("", cost.refusal)
                lines.append(f"{name}: cannot use this cell: {reason}")
            else:
                lines.append(
                    f"{name}: {_size(cost.state_bytes)} of state, {cost.flops:.3g} "
                    f"floating-point operations per push"
                )
        if self.check is not None:
            lines.append(str(self.check))
        return "\n".join(lines)


def explain(
    cell: Cell,
    example_input: Any,
    *,
    batch_size: int = 1,
    estimators: Mapping[str, InfluenceEstimator] | None = None,
    check: bool = True,
) -> Explanation:
    """Prints and returns the structure that the linearization finds in a cell. Nothing is trained.

    Args:
      cell: for one lane.
      example_input: one lane's input.
      batch_size: B, for the costs.
      estimators: those to report the costs of, by name. None means all estimators of the library, with
        their default arguments, and 8 for arguments without a default, such as a rank.
      check: whether to compare it with `jax.vjp`, which compiles a program (see `linearization.check`).

    Raises:
      UnsupportedCellError: if the cell cannot be linearized, or fails the check.
    """
    if estimators is None:
        estimators = dict(_with_defaults(name, make) for name, make in ESTIMATORS.items())
    linearizer = make_linearizer(cell, example_input, batch_size)
    linearize = _linearize_something(cell, linearizer, example_input, batch_size)
    shapes = jax.eval_shape(linearize, jax.random.key(0))
    explanation = Explanation(
        structure=linearizer.structure,
        derivatives=tuple(_kind(site.derivatives.groups[-1]) for site in shapes.sites),
        jacobian=tuple(map(_kind, jax.eval_shape(lambda j: j.blocks, shapes.jacobian))),
        direct=linearizer.direct,
        linearization_flops=_flops(linearize, jax.random.key(0)),
        check=compare(cell, example_input) if check else None,
        costs={name: _cost(e, linearizer.structure, shapes) for name, e in estimators.items()},
    )
    print(explanation)
    return explanation


def _with_defaults(
    name: str, make: Callable[..., InfluenceEstimator]
) -> tuple[str, InfluenceEstimator]:
    needed = {
        key: 8
        for key, parameter in inspect.signature(make).parameters.items()
        if parameter.default is inspect.Parameter.empty
    }
    shown = ", ".join(f"{key}={value}" for key, value in needed.items())
    return (f"{name}({shown})" if shown else name), make(**needed)


def _linearize_something(
    cell: Cell, linearizer: Linearizer, example_input: Any, batch_size: int
) -> Callable[[Array], Linearization]:
    def linearize(key: Array) -> Linearization:
        def lanes(tree: Any) -> Any:
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch_size, *jnp.shape(x))), tree)

        x = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example_input)
        return linearizer.linearize(
            cell.init(key), lanes(cell.initial_carry()), lanes(x), jnp.ones(batch_size)
        )

    return linearize


def _flops(function: Callable[..., Any], *arguments: Any) -> float:
    analysis = jax.jit(function).lower(*arguments).cost_analysis() or {}
    return float(analysis.get("flops", 0.0))


def _kind(matrix: Group) -> str:
    if isinstance(matrix, Shared):
        return _kind(matrix.whole)
    if not isinstance(matrix, Banded):
        return "dense"
    if matrix.num_bands <= 1:
        return "diagonal" if matrix.num_bands else "zero"
    return f"diagonal in {matrix.num_bands} bands"


def _size(count: int) -> str:
    return f"{count / 2**10:.3g} KiB" if count < 2**20 else f"{count / 2**20:.3g} MiB"


def _density(mask: Mask | None) -> str:
    return "" if mask is None else f" ({mask.density:.1%} can be non-zero)"


def _cost(
    estimator: InfluenceEstimator, structure: Structure, linearization: Linearization
) -> Cost:
    try:
        state = jax.eval_shape(lambda: estimator.init(structure))
    except UnsupportedCellError as error:
        return Cost(None, None, str(error))
    return Cost(
        bytes_of(state), _flops(estimator.push, state, linearization, jax.random.key(0)), ""
    )
