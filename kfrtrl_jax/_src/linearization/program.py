"""A cell's step as one flat list of equations.

Every value has a role: it is a constant, a function of parameters alone, or data, which depends on the
carry or the input. The rest of the linearization works on the equations in which parameters meet data.
All values are real: complex ones are split in two parts, see `complex_numbers`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import jax_internals


class Role(enum.Enum):
    """What a value depends on."""

    CONSTANT = "constant"
    PARAMETER = "parameter"
    DATA = "data"


@dataclasses.dataclass(frozen=True, eq=False)
class Variable:
    """A value inside a step, compared by identity.

    Attributes:
      shape: of the value.
      dtype: of the value.
      role: what it depends on.
      fixed: whether it depends on parameters, but on none that has derivatives.
    """

    shape: tuple[int, ...]
    dtype: Any
    role: Role
    fixed: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A value that was known when the step was traced."""

    value: Any
    role: Role = Role.CONSTANT

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's shape."""
        return jnp.shape(self.value)

    @property
    def dtype(self) -> Any:
        """The value's type."""
        return self.value.dtype if hasattr(self.value, "dtype") else jnp.result_type(self.value)


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
        """Whether parameters that have derivatives meet data here."""
        return meet(self.inputs)

    def apply(self, values: Sequence[Any]) -> Sequence[Any]:
        """The outputs' values."""
        return jax_internals.bind(self.primitive, self.params, values)


@dataclasses.dataclass(frozen=True, eq=False)
class TracedStep:
    """A step (params, carry, x) -> (carry, output), flat.

    Attributes:
      parameters: the leaves of params. Here and below a complex leaf counts as two, see
        `complex_numbers`.
      paths: their paths in the user's tree.
      carry: the leaves of the carry.
      inputs: the leaves of x.
      equations: in order of evaluation.
      new_carry: the leaves of the new carry.
      output: the leaves of the output.
    """

    parameters: tuple[Variable, ...]
    paths: tuple[str, ...]
    carry: tuple[Variable, ...]
    inputs: tuple[Variable, ...]
    equations: tuple[Equation, ...]
    new_carry: tuple[Atom, ...]
    output: tuple[Atom, ...]


def meet(atoms: Sequence[Atom]) -> bool:
    """Whether parameters that have derivatives meet data among the inputs of an equation."""
    return any(atom.role is Role.DATA for atom in atoms) and any(map(has_gradient, atoms))


def has_gradient(atom: Atom) -> bool:
    """Whether a value is a function of parameters alone, with a derivative by them."""
    return (
        isinstance(atom, Variable)
        and atom.role is Role.PARAMETER
        and not atom.fixed
        and is_inexact(atom)
    )


def is_inexact(atom: Atom) -> bool:
    """Whether a value is of floats."""
    return bool(jnp.issubdtype(atom.dtype, jnp.inexact))


Environment = dict[Variable, Any]


def read(environment: Environment, atom: Atom) -> Any:
    """The value of an atom."""
    return atom.value if isinstance(atom, Constant) else environment[atom]


def evaluate(equations: Sequence[Equation], environment: Environment) -> Environment:
    """The environment, extended by those outputs of the equations that it does not have yet.

    Args:
      equations: in order of evaluation.
      environment: the known values.
    """
    environment = dict(environment)
    for equation in equations:
        if all(v in environment for v in equation.outputs):
            continue
        values = equation.apply([read(environment, atom) for atom in equation.inputs])
        environment.update(zip(equation.outputs, values))
    return environment


def needed(
    equations: Sequence[Equation], targets: Sequence[Atom], given: Sequence[Variable] = ()
) -> list[Equation]:
    """The equations that the targets depend on, in order, with the given values as known."""
    cut = set(given)
    live = {atom for atom in targets if isinstance(atom, Variable)} - cut
    kept = []
    for equation in reversed(equations):
        if not live.isdisjoint(equation.outputs):
            kept.append(equation)
            live.update(a for a in equation.inputs if isinstance(a, Variable) and a not in cut)
    return kept[::-1]


@dataclasses.dataclass(frozen=True, eq=False)
class LoopBody:
    """One iteration of a scan.

    Attributes:
      constants: data that are the same in every iteration.
      carried: what goes from one iteration to the next.
      scanned: this iteration's part of what is scanned over.
      captured: values without data, from outside, that the equations read.
      equations: those of data; what needs none stands outside.
      new_carried: the carried values after it.
      stacked: this iteration's part of the results.
    """

    constants: tuple[Variable, ...]
    carried: tuple[Variable, ...]
    scanned: tuple[Variable, ...]
    captured: tuple[Variable, ...]
    equations: tuple[Equation, ...]
    new_carried: tuple[Atom, ...]
    stacked: tuple[Atom, ...]

    @property
    def starts(self) -> tuple[Variable, ...]:
        """All data that an iteration begins with."""
        return (*self.constants, *self.carried, *self.scanned)

    @property
    def floats(self) -> tuple[list[Variable], list[Variable], list[Variable]]:
        """The constants, the carried and the scanned values that have derivatives."""
        constants, carried, scanned = (
            list(filter(is_inexact, v)) for v in (self.constants, self.carried, self.scanned)
        )
        return constants, carried, scanned


@dataclasses.dataclass(frozen=True, eq=False)
class Loop(Equation):
    """A scan in which parameters meet data, looked into.

    Its inputs are those of the scan that belong to the body's `starts`, then the `captured` ones.
    """

    body: LoopBody

    @property
    def length(self) -> int:
        """The number of iterations."""
        return int(self.params["length"])

    @property
    def data_inputs(self) -> tuple[Atom, ...]:
        """Those for the body's `starts`."""
        return self.inputs[: len(self.body.starts)]

    def apply(self, values: Sequence[Any]) -> Sequence[Any]:
        """The outputs' values."""
        known = {a: v for a, v in zip(self.inputs, values) if isinstance(a, Variable)}

        def iteration(environment: Environment, _: Any) -> tuple[Environment, None]:
            return evaluate(self.body.equations, environment), None

        return self.run(known, known, iteration)[0]

    def run(
        self,
        environment: Environment,
        captured: Environment,
        iteration: Callable[[Environment, Any], tuple[Environment, Any]],
        scanned: Any = None,
    ) -> tuple[list[Any], Any]:
        """All iterations.

        Args:
          environment: with the data inputs.
          captured: with the values without data.
          iteration: (environment of one iteration, its part of `scanned`) -> (environment with what
            the body's equations make, anything).
          scanned: more to scan over.

        Returns:
          The outputs' values, and what the iterations returned, stacked.
        """
        body, inputs = self.body, [read(environment, atom) for atom in self.data_inputs]
        constants, rest = inputs[: len(body.constants)], inputs[len(body.constants) :]
        known = {v: captured[v] for v in body.captured} | dict(zip(body.constants, constants))

        def one(carry: Any, xs: Any) -> Any:
            inner = {**known, **dict(zip(body.carried, carry)), **dict(zip(body.scanned, xs[0]))}
            inner, seen = iteration(inner, xs[1])
            new, stacked = ([read(inner, a) for a in o] for o in (body.new_carried, body.stacked))
            return new, (stacked, seen)

        carry, xs = rest[: len(body.carried)], rest[len(body.carried) :]
        carry, (stacked, seen) = self.scan(one, carry, (xs, scanned))
        return [*carry, *stacked], seen

    def scan(self, one: Callable[..., Any], carry: Any, xs: Any, backward: bool = False) -> Any:
        """`jax.lax.scan` over the iterations in their order, or from the last to the first."""
        reverse = bool(self.params["reverse"]) != backward
        return jax.lax.scan(one, carry, xs, length=self.length, reverse=reverse)


# The name of a function that holds a whole operation is this prefix and the operation's origin.
WHOLE = "kfrtrl_jax whole "


def origin(equation: Equation) -> str:
    """The name of an equation and its place in the user's code: "max at file.py:12"."""
    name = str(equation.params.get("name", ""))
    if name.startswith(WHOLE):
        return name.removeprefix(WHOLE)
    return jax_internals.origin(equation.primitive, equation.source)
