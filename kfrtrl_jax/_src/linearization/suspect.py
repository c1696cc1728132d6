"""Finds the operation of a step that causes a wrong linearization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Cell
from kfrtrl_jax._src.linearization.complex_numbers import real_leaves
from kfrtrl_jax._src.linearization.patterns import DenseRelation, propagate
from kfrtrl_jax._src.linearization.program import (
    Constant,
    Environment,
    Equation,
    Role,
    TracedStep,
    Variable,
    evaluate,
    needed,
    origin,
    read,
)
from kfrtrl_jax._src.linearization.trace import trace

# Jacobians with more entries are not examined.
_MAX_ENTRIES = 2**22


def suspect(cell: Cell, params: Any, carry: Any, x: Any, paths: Sequence[str]) -> str:
    """The likely origin of a wrong linearization, as part of a message; "" if none is found.

    It is the first operation whose Jacobian has a non-zero entry outside its pattern; else the places
    where the parameters of these paths meet data; else the operations that read the state.
    """
    program = trace(cell.step, params, carry, x)
    variables = (*program.parameters, *program.carry, *program.inputs)
    environment: Environment = dict(zip(variables, real_leaves((params, carry, x))))
    environment = evaluate(program.equations, environment)
    for equation in needed(program.equations, [*program.new_carry, *program.output]):
        data = any(v.role is Role.DATA for v in equation.outputs)
        if data and _is_denser_than_its_pattern(equation, environment):
            return f", through {origin(equation)}"
    meetings = _meetings(program, paths)
    if meetings:
        return f", where it meets data in {meetings}"
    readers = dict.fromkeys(
        origin(e) for e in program.equations if not set(program.carry).isdisjoint(e.inputs)
    )
    return f", where the state is read by {', '.join(readers)}" if readers else ""


def _is_denser_than_its_pattern(equation: Equation, environment: Environment) -> bool:
    sources = [
        a
        for a in dict.fromkeys(equation.inputs)
        if isinstance(a, Variable) and _is_float(a) and a.role is Role.DATA
    ]
    outputs = [v for v in equation.outputs if _is_float(v)]
    patterns = propagate([equation], sources)
    for output in outputs:
        for source in sources:
            relation = patterns.get(output, {}).get(source, [])
            rows, columns = math.prod(output.shape), math.prod(source.shape)
            if isinstance(relation, DenseRelation) or rows * columns > _MAX_ENTRIES:
                continue
            allowed = np.zeros((rows, columns), bool)
            for band in relation:
                flat = band.reshape(-1)
                present = np.flatnonzero(flat >= 0)
                allowed[present, flat[present]] = True
            jacobian = _jacobian(equation, environment, output, source)
            if np.any(np.abs(np.nan_to_num(jacobian))[~allowed] > 0):
                return True
    return False


def _is_float(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def _jacobian(
    equation: Equation, environment: Environment, output: Variable, source: Variable
) -> np.ndarray:
    place = equation.outputs.index(output)

    def function(value: Any) -> Any:
        values = [value if a is source else read(environment, a) for a in equation.inputs]
        return equation.apply(values)[place]

    result, pullback = jax.vjp(function, environment[source])
    rows = jnp.eye(result.size, dtype=result.dtype).reshape(-1, *result.shape)
    (jacobian,) = jax.vmap(pullback)(rows)
    return np.asarray(jacobian).reshape(result.size, -1)


def _meetings(program: TracedStep, paths: Sequence[str]) -> str:
    """The operations, with their lines, in which parameters of these paths meet data."""
    behind = {v for v, path in zip(program.parameters, program.paths) if path in paths}
    found: dict[str, None] = {}
    for equation in program.equations:
        if behind.isdisjoint(a for a in equation.inputs if not isinstance(a, Constant)):
            continue
        if all(v.role is not Role.DATA for v in equation.outputs):
            behind.update(equation.outputs)
        else:
            found[f"{origin(equation)}"] = None
    return ", ".join(found)
