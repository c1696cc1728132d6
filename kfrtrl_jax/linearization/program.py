"""A cell's step as one flat list of equations, read off its jaxpr.

Every value has a role: a constant, a function of parameters alone, or data (anything that depends on
the carry or the input). Equations where parameters meet data are what the rest looks at.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

# Primitives that only wrap a jaxpr: it is read in their place.
_TRANSPARENT = {"jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "remat2"}


class Role(enum.Enum):
    """What a value depends on."""

    CONSTANT = "constant"
    PARAMETER = "parameter"
    DATA = "data"


@dataclasses.dataclass(frozen=True, eq=False)
class Variable:
    """A value inside a step: known by identity, with its shape, type and role."""

    shape: tuple[int, ...]
    dtype: Any
    role: Role


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A value known when the step was traced."""

    value: Any
    role: Role = Role.CONSTANT

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's shape."""
        return jax.numpy.shape(self.value)


Atom = Variable | Constant


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One primitive operation."""

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[Atom, ...]
    outputs: tuple[Variable, ...]
    source: Any

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.primitive.name

    @property
    def is_meeting(self) -> bool:
        """Whether parameters meet data here."""
        roles = {atom.role for atom in self.inputs}
        return Role.PARAMETER in roles and Role.DATA in roles

    def apply(self, values: Sequence[Any]) -> Sequence[Any]:
        """The outputs' values."""
        result = self.primitive.bind(*values, **self.primitive.get_bind_params(self.params))
        return result if self.primitive.multiple_results else [result]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A step (params, carry, x) -> (carry, output), flat.

    Attributes:
      parameters: the leaves of params.
      carry: the leaves of the carry.
      inputs: the leaves of x.
      equations: in order of evaluation.
      new_carry: the leaves of the new carry.
      output: the leaves of the output.
    """

    parameters: tuple[Variable, ...]
    carry: tuple[Variable, ...]
    inputs: tuple[Variable, ...]
    equations: tuple[Equation, ...]
    new_carry: tuple[Atom, ...]
    output: tuple[Atom, ...]


Environment = dict[Variable, Any]


def read(environment: Environment, atom: Atom) -> Any:
    """The value of an atom."""
    return atom.value if isinstance(atom, Constant) else environment[atom]


def evaluate(equations: Sequence[Equation], environment: Environment) -> Environment:
    """The environment with the equations' outputs, except those it already has, added to it."""
    environment = dict(environment)
    for equation in equations:
        if all(v in environment for v in equation.outputs):
            continue
        values = equation.apply([read(environment, atom) for atom in equation.inputs])
        environment.update(zip(equation.outputs, values))
    return environment


def needed(
    equations: Sequence[Equation], wanted: Sequence[Atom], given: Sequence[Variable] = ()
) -> list[Equation]:
    """Those of the equations that the wanted values depend on, in order, short of given values."""
    cut = set(given)
    live = {atom for atom in wanted if isinstance(atom, Variable)} - cut
    kept = []
    for equation in reversed(equations):
        if not live.isdisjoint(equation.outputs):
            kept.append(equation)
            live.update(a for a in equation.inputs if isinstance(a, Variable) and a not in cut)
    return kept[::-1]


def trace(step: Callable[..., Any], params: Any, carry: Any, x: Any) -> Program:
    """Reads the step's jaxpr; params, carry and x may be arrays or `jax.ShapeDtypeStruct`s."""
    closed = jax.make_jaxpr(step)(params, carry, x)
    parameters = _variables(params, Role.PARAMETER)
    states = _variables(carry, Role.DATA)
    inputs = _variables(x, Role.DATA)
    equations, outputs = inline_jaxpr(closed, [*parameters, *states, *inputs])
    count = len(states)
    return Program(
        parameters, states, inputs, tuple(equations), tuple(outputs[:count]), tuple(outputs[count:])
    )


def inline_jaxpr(closed: Any, arguments: Sequence[Atom]) -> tuple[list[Equation], list[Atom]]:
    """The flat equations and the outputs of a closed jaxpr called with the arguments."""
    equations: list[Equation] = []
    outputs = _inline(closed.jaxpr, closed.consts, arguments, equations)
    return equations, outputs


def _variables(tree: Any, role: Role) -> tuple[Variable, ...]:
    return tuple(
        Variable(tuple(jax.numpy.shape(leaf)), jax.numpy.result_type(leaf), role)
        for leaf in jax.tree.leaves(tree)
    )


def _inline(
    jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Atom], equations: list[Equation]
) -> list[Atom]:
    """Appends the jaxpr's equations, wrapped ones looked into; returns its outputs."""
    atoms: dict[Any, Atom] = dict(zip(jaxpr.invars, arguments))
    atoms.update((var, Constant(value)) for var, value in zip(jaxpr.constvars, consts))

    def atom_of(var: Any) -> Atom:
        return Constant(var.val) if isinstance(var, core.Literal) else atoms[var]

    for eqn in jaxpr.eqns:
        inputs = tuple(atom_of(var) for var in eqn.invars)
        inner = _inner_jaxpr(eqn, inputs)
        if inner is not None:
            atoms.update(zip(eqn.outvars, _inline(inner.jaxpr, inner.consts, inputs, equations)))
        else:
            roles = {atom.role for atom in inputs}
            role = next((r for r in (Role.DATA, Role.PARAMETER) if r in roles), Role.CONSTANT)
            outputs = [Variable(tuple(v.aval.shape), v.aval.dtype, role) for v in eqn.outvars]
            equations.append(
                Equation(eqn.primitive, eqn.params, inputs, tuple(outputs), eqn.source_info)
            )
            atoms.update(zip(eqn.outvars, outputs))
    return [atom_of(var) for var in jaxpr.outvars]


def _inner_jaxpr(eqn: Any, inputs: Sequence[Atom]) -> Any | None:
    """The closed jaxpr to read in an equation's place, or None where it stays as it is."""
    if eqn.primitive.name in _TRANSPARENT:
        jaxpr = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
        return jaxpr if hasattr(jaxpr, "consts") else core.ClosedJaxpr(jaxpr, ())
    roles = {atom.role for atom in inputs}
    if eqn.primitive.name == "scan" and {Role.PARAMETER, Role.DATA} <= roles:
        return _unrolled(eqn)
    return None


def _unrolled(eqn: Any) -> Any:
    """A scan as the jaxpr of its iterations one after another."""
    body = core.jaxpr_as_fun(eqn.params["jaxpr"])
    length, reverse = eqn.params["length"], eqn.params["reverse"]
    num_consts, num_carry = eqn.params["num_consts"], eqn.params["num_carry"]

    def iterations(*values: Any) -> Any:
        consts = values[:num_consts]
        carry = list(values[num_consts : num_consts + num_carry])
        xs = values[num_consts + num_carry :]
        ys: list[Any] = [None] * length
        for i in reversed(range(length)) if reverse else range(length):
            result = body(*consts, *carry, *(x[i] for x in xs))
            carry, ys[i] = list(result[:num_carry]), result[num_carry:]
        stacked = [jax.numpy.stack(column) for column in zip(*ys)]
        return [*carry, *stacked]

    arguments = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    return jax.make_jaxpr(iterations)(*arguments)
