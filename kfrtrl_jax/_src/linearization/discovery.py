"""Where parameters enter a step: pre-activations, made of products of parameters with data.

A pre-activation is a sum z = sum_p W_p^T a_p + b of products and biases that nothing else reads; all
its terms share D = ds/dz.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kfrtrl_jax._src.linearization.patterns import move
from kfrtrl_jax._src.linearization.program import (
    Atom,
    Equation,
    Loop,
    Role,
    TracedStep,
    Variable,
    has_gradient,
    needed,
    origin,
)
from kfrtrl_jax._src.linearization.rewrites import MAX_USES
from kfrtrl_jax._src.linearization.weight_terms import (
    TOO_OFTEN,
    Bias,
    Product,
    Rest,
    Scaling,
    Term,
    term_of,
)

# Operations that only choose among elements and change their places, none of them twice.
SELECTING = frozenset("expand_dims reshape rev slice split squeeze transpose".split())


@dataclasses.dataclass(frozen=True, eq=False)
class PreActivation:
    """A sum of terms in which parameters meet data.

    Attributes:
      variable: z, flattened to [g].
      terms: what it is the sum of.
    """

    variable: Variable
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        """The number g of its elements."""
        return math.prod(self.variable.shape)

    @property
    def products(self) -> list[Product]:
        """Its products."""
        return [t for t in self.terms if isinstance(t, Product)]

    @property
    def biases(self) -> list[Bias]:
        """Its biases."""
        return [t for t in self.terms if isinstance(t, Bias)]

    @property
    def met(self) -> list[Variable]:
        """The data that its terms read, each once."""
        return list(dict.fromkeys(t.data for t in self.terms if not isinstance(t, Bias)))

    @property
    def scalings(self) -> list[Scaling]:
        """Its element-wise terms."""
        return [t for t in self.terms if isinstance(t, Scaling)]


@dataclasses.dataclass(frozen=True, eq=False)
class InnerLoop:
    """A loop in which parameters meet data, and where in its body.

    Attributes:
      loop: the loop.
      discovery: of its body.
    """

    loop: Loop
    discovery: Discovery


@dataclasses.dataclass(frozen=True, eq=False)
class Discovery:
    """All places where parameters enter the results of equations.

    Attributes:
      equations: those that the results need, except parameter-only ones.
      prefix: the parameter-only equations (what constants they need is in both); none inside a loop.
      pre_activations: in order of evaluation, but those inside of loops.
      opaque: parameter-only values that meet data in an operation of no known structure, with what the
        operation is and why it does not fit ("" for one that is itself a result); the whole value is
        then its own site.
      loops: in order of evaluation.
    """

    equations: tuple[Equation, ...]
    prefix: tuple[Equation, ...]
    pre_activations: tuple[PreActivation, ...]
    opaque: dict[Variable, str]
    loops: tuple[InnerLoop, ...]

    @property
    def cuts(self) -> list[PreActivation | InnerLoop]:
        """Pre-activations and loops, in order of evaluation."""
        order = {v: i for i, e in enumerate(self.equations) for v in e.outputs}

        def place(cut: PreActivation | InnerLoop) -> int:
            return order[cut.variable if isinstance(cut, PreActivation) else cut.loop.outputs[0]]

        return sorted((*self.pre_activations, *self.loops), key=place)

    def met(self) -> list[Variable]:
        """The data that parameters meet, those inside of loops too."""
        own = [v for z in self.pre_activations for v in z.met]
        inside = [v for inner in self.loops for v in inner.discovery.met()]
        return list(dict.fromkeys([*own, *inside]))

    def tapped(self) -> list[tuple[Variable, tuple[int, ...]]]:
        """All pre-activations, each with the iterations of the loops around it."""
        found: list[tuple[Variable, tuple[int, ...]]] = [
            (z.variable, ()) for z in self.pre_activations
        ]
        for inner in self.loops:
            found += [(v, (inner.loop.length, *n)) for v, n in inner.discovery.tapped()]
        return found


def discover(program: TracedStep) -> Discovery:
    """Finds the sites of a step."""
    equations = needed(program.equations, program.new_carry)
    prefix = [e for e in equations if all(v.role is not Role.DATA for v in e.outputs)]
    body = [e for e in equations if all(v.role is not Role.PARAMETER for v in e.outputs)]

    def problem(equation: Equation, atom: Variable, why: str) -> str:
        names = " + ".join(parameter_paths(program, prefix, [atom]))
        return f"{origin(equation)} takes the parameter {names}: {why}"

    return _discovered(body, program.new_carry, problem, prefix)


def follows(loop: Loop) -> bool:
    """Whether all of a loop's parameters enter its body in known ways."""
    return not _inside(loop).opaque


def _inside(loop: Loop) -> Discovery:
    results = (*loop.body.new_carried, *loop.body.stacked)
    return _discovered(needed(loop.body.equations, results), results, lambda *_: "")


def _discovered(
    body: Sequence[Equation],
    results: Sequence[Atom],
    problem: Callable[[Equation, Variable, str], str],
    prefix: Sequence[Equation] = (),
) -> Discovery:
    """Where parameters enter.

    Args:
      body: the equations of data that the results need.
      results: what is made.
      problem: (equation, parameter-only value, why it has no structure there) -> a line.
      prefix: the parameter-only equations.
    """
    readers: dict[Variable, list[Equation | None]] = collections.defaultdict(list)
    for equation in body:
        for atom in equation.inputs:
            if isinstance(atom, Variable):
                readers[atom].append(equation)
    for atom in results:
        if isinstance(atom, Variable):
            readers[atom].append(None)
    sums: dict[Variable, tuple[Term, ...]] = {}
    opaque: dict[Variable, str] = {}
    loops: list[InnerLoop] = []
    overused = _overused(body)

    for equation in body:
        output = equation.outputs[0]
        if isinstance(equation, Loop):
            loops.append(InnerLoop(equation, _inside(equation)))
        elif equation.is_meeting:
            found = TOO_OFTEN if overused & set(equation.inputs) else term_of(equation)
            if isinstance(found, str):
                for atom in equation.inputs:
                    if has_gradient(atom):
                        assert isinstance(atom, Variable)
                        opaque.setdefault(atom, problem(equation, atom, found))
                continue
            sums[output] = (found,)
            if isinstance(found, Bias):
                data = next(a for a in equation.inputs if a.role is Role.DATA)
                assert isinstance(data, Variable)
                if data in sums and len(readers[data]) == 1:
                    sums[output] = (*sums.pop(data), found)
                else:
                    sums[output] = (Rest(data, np.arange(found.select.size)), found)
        elif equation.name in ("add", "add_any"):
            left, right = equation.inputs
            if (
                isinstance(left, Variable)
                and isinstance(right, Variable)
                and left is not right
                and left.shape == right.shape
                and all(v in sums and len(readers[v]) == 1 for v in (left, right))
            ):
                sums[output] = (*sums.pop(left), *sums.pop(right))
        elif equation.name in SELECTING:
            # If slices are the only readers of a product or sum (gates of a fused one), they are moved
            # in front of the products, so that sums are recognized.
            (whole, *_) = equation.inputs
            if isinstance(whole, Variable) and whole in sums and _only_selected(readers[whole]):
                places = np.arange(math.prod(whole.shape)).reshape(whole.shape)
                for variable, chosen in zip(equation.outputs, move(equation, [places])):
                    flat = chosen.reshape(-1)
                    sums[variable] = tuple(t._replace(select=t.select[flat]) for t in sums[whole])
    whole_ones = [v for v in sums if readers[v] and _only_selected(readers[v])]
    for variable in whole_ones:
        del sums[variable]
    for atom in results:
        if isinstance(atom, Variable) and has_gradient(atom):
            opaque.setdefault(atom, "")
    pre_activations = [PreActivation(variable, terms) for variable, terms in sums.items()]
    order = {v: i for i, e in enumerate(body) for v in e.outputs}
    pre_activations.sort(key=lambda z: order[z.variable])
    return Discovery(tuple(body), tuple(prefix), tuple(pre_activations), opaque, tuple(loops))


def _overused(body: Sequence[Equation]) -> set[Any]:
    """Parameter-only values that meet data too often to be followed into each use."""
    uses = collections.Counter(
        atom
        for equation in body
        if equation.is_meeting
        for atom in equation.inputs
        if has_gradient(atom)
    )
    return {value for value, count in uses.items() if count > MAX_USES}


def _only_selected(readers: list[Equation | None]) -> bool:
    return all(reader is not None and reader.name in SELECTING for reader in readers)


def parameter_paths(
    program: TracedStep, prefix: Sequence[Equation], values: Sequence[Variable]
) -> list[str]:
    """The paths, in the user's tree, of the parameters that parameter-only values are made of."""
    chain = needed(prefix, values)
    behind = {*values, *(atom for e in chain for atom in e.inputs)}
    # The two parts of a complex parameter have one path.
    found = [path for v, path in zip(program.parameters, program.paths) if v in behind]
    return list(dict.fromkeys(found))
