"""Where parameters enter a step: pre-activations, made of products of parameters with data.

A pre-activation is a sum z = sum_p W_p^T a_p + b of products and biases that nothing else reads; all
its terms share D = ds/dz. Pre-activations with the same inputs share a as well. So the sites are found
as merged as they can be: a cell written with a matrix for every gate and one for every input costs
what the fused one does.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from kfrtrl_jax.linearization.program import (
    Atom,
    Constant,
    Equation,
    Program,
    Role,
    Variable,
    needed,
)


class Product(NamedTuple):
    """The term W^T a of a pre-activation, as a dot_general makes it.

    Attributes:
      weights: the parameter-only operand.
      data: the other operand.
      weight_axes: the order of the operand's axes that reshapes it to [m, g].
      data_axes: the order of the operand's axes that reshapes it to [m].
      input_size: m.
    """

    weights: Variable
    data: Variable
    weight_axes: tuple[int, ...]
    data_axes: tuple[int, ...]
    input_size: int

    @property
    def data_key(self) -> tuple[Variable, tuple[int, ...]]:
        """What tells whether two products read the same vector."""
        return self.data, self.data_axes

    def matrix(self, value: Any) -> Any:
        """[m, g] from the operand's value."""
        return value.transpose(self.weight_axes).reshape(self.input_size, -1)

    def vector(self, value: Any) -> Any:
        """[m] from the data operand's value, or its pattern of indices."""
        return value.transpose(self.data_axes).reshape(-1)


class Bias(NamedTuple):
    """The term b (or -b) of a pre-activation."""

    values: Variable
    sign: int


class Scaling(NamedTuple):
    """The term w * v of a pre-activation, element by element."""

    weights: Variable
    data: Variable


class Rest(NamedTuple):
    """The term v of a pre-activation that is data alone, as in v + b."""

    data: Variable


Term = Product | Bias | Scaling | Rest


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
    def scalings(self) -> list[Scaling]:
        """Its element-wise terms."""
        return [t for t in self.terms if isinstance(t, Scaling)]

    @property
    def input_key(self) -> tuple[Any, ...]:
        """What tells whether two pre-activations have the same inputs."""
        return frozenset(p.data_key for p in self.products), bool(self.biases)


@dataclasses.dataclass(frozen=True, eq=False)
class Discovery:
    """All places where parameters enter the new carry.

    Attributes:
      equations: those that the new carry needs, parameter-only ones apart.
      prefix: the parameter-only equations (what constants they need is in both).
      pre_activations: in order of evaluation.
      opaque: parameter-only values that meet data in an operation of no known structure; the whole
        value is then its own site.
      problems: for each opaque one, what the operation is and why it does not fit.
    """

    equations: tuple[Equation, ...]
    prefix: tuple[Equation, ...]
    pre_activations: tuple[PreActivation, ...]
    opaque: tuple[Variable, ...]
    problems: tuple[str, ...]


def discover(program: Program) -> Discovery:
    """Finds the sites of a step."""
    equations = needed(program.equations, program.new_carry)
    prefix = [e for e in equations if all(v.role is not Role.DATA for v in e.outputs)]
    body = [e for e in equations if all(v.role is not Role.PARAMETER for v in e.outputs)]
    uses = collections.Counter(
        atom
        for atom in [*(a for e in body for a in e.inputs), *program.new_carry]
        if isinstance(atom, Variable)
    )
    sums: dict[Variable, tuple[Term, ...]] = {}
    opaque: list[Variable] = []
    problems: list[str] = []

    def absorbed(atom: Atom) -> tuple[Term, ...] | None:
        """The terms of an operand that only this equation reads."""
        if isinstance(atom, Variable) and uses[atom] == 1 and atom in sums:
            return sums.pop(atom)
        return None

    for equation in body:
        if equation.is_meeting:
            found = _term(equation)
            if isinstance(found, str):
                for atom in equation.inputs:
                    if isinstance(atom, Variable) and atom.role is Role.PARAMETER:
                        if atom not in opaque:
                            opaque.append(atom)
                        problems.append(found)
                continue
            data = next(
                a for a in equation.inputs if isinstance(a, Variable) and a.role is Role.DATA
            )
            if isinstance(found, Bias):
                own = absorbed(data)
                sums[equation.outputs[0]] = (*(own if own is not None else (Rest(data),)), found)
            else:
                sums[equation.outputs[0]] = (found,)
        elif equation.name in ("add", "add_any"):
            left, right = equation.inputs
            if (
                isinstance(left, Variable)
                and isinstance(right, Variable)
                and left is not right
                and left.shape == right.shape
                and all(v in sums and uses[v] == 1 for v in (left, right))
            ):
                sums[equation.outputs[0]] = (*sums.pop(left), *sums.pop(right))
    opaque += [
        atom
        for atom in program.new_carry
        if isinstance(atom, Variable) and atom.role is Role.PARAMETER and atom not in opaque
    ]
    pre_activations = [PreActivation(variable, terms) for variable, terms in sums.items()]
    order = {v: i for i, e in enumerate(body) for v in e.outputs}
    pre_activations.sort(key=lambda z: order[z.variable])
    return Discovery(
        tuple(body), tuple(prefix), tuple(pre_activations), tuple(opaque), tuple(problems)
    )


def _term(equation: Equation) -> Term | str:
    """The term that a meeting makes, or why it makes none."""
    first, second = equation.inputs[0], equation.inputs[-1]
    if len(equation.inputs) != 2 or isinstance(first, Constant) or isinstance(second, Constant):
        return f"{equation.name} of parameters with data is not a product"
    parameters, data = (first, second) if first.role is Role.PARAMETER else (second, first)
    if equation.name == "dot_general":
        return _product(equation, parameters, data)
    if parameters.shape != equation.outputs[0].shape or data.shape != parameters.shape:
        return f"{equation.name} of parameters with data of another shape"
    if equation.name in ("add", "add_any"):
        return Bias(parameters, 1)
    if equation.name == "sub" and parameters is second:
        return Bias(parameters, -1)
    if equation.name == "mul":
        return Scaling(parameters, data)
    return f"{equation.name} of parameters with data is not a product"


def _product(equation: Equation, weights: Variable, data: Variable) -> Product | str:
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    weights_first = equation.inputs[0] is weights
    weight_axes, data_axes = (left, right) if weights_first else (right, left)
    weight_batch, data_batch = (
        (left_batch, right_batch) if weights_first else (right_batch, left_batch)
    )
    if any(weights.shape[axis] != 1 for axis in weight_batch):
        return "dot_general with a batch axis makes many products of one parameter"
    data_free = [a for a in range(len(data.shape)) if a not in (*data_axes, *data_batch)]
    if any(data.shape[axis] != 1 for axis in data_free):
        return "dot_general with a matrix of data uses each parameter more than once"
    free = [a for a in range(len(weights.shape)) if a not in (*weight_axes, *weight_batch)]
    size = math.prod(weights.shape[axis] for axis in weight_axes)
    return Product(
        weights,
        data,
        (*weight_axes, *weight_batch, *free),
        (*data_axes, *data_batch, *data_free),
        size,
    )


class SiteInput(NamedTuple):
    """The rows of a site's weights: one vector of data, or the constant 1 of biases.

    Attributes:
      product: any of the products that read the vector, or None for the biases' row.
      size: the number of rows.
    """

    product: Product | None
    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class SitePlan:
    """One site: the pre-activations that share an input, their D side by side.

    Attributes:
      inputs: what a is put together from; empty where a is the constant 1.
      pre_activations: whose z are put side by side.
      scaling: for an element-wise weight, its term; the derivative is D diag(v).
      opaque: for a value of no structure, the value.
    """

    inputs: tuple[SiteInput, ...]
    pre_activations: tuple[PreActivation, ...]
    scaling: Scaling | None = None
    opaque: Variable | None = None

    @property
    def input_size(self) -> int:
        """The number m of rows."""
        return sum(i.size for i in self.inputs) or 1

    @property
    def output_size(self) -> int:
        """The number g of columns."""
        if self.opaque is not None:
            return math.prod(self.opaque.shape)
        return sum(z.size for z in self.pre_activations)

    def weights(self) -> list[Variable]:
        """The parameter-only values that the site's block of weights holds."""
        if self.opaque is not None:
            return [self.opaque]
        if self.scaling is not None:
            return [self.scaling.weights]
        return [
            weights
            for z in self.pre_activations
            for weights in (*(p.weights for p in z.products), *(b.values for b in z.biases))
        ]

    def cotangents(self, block: Any) -> list[tuple[Variable, Any]]:
        """The gradient of each of `weights()`, from the gradient of the block, [m, g]."""
        if self.opaque is not None:
            return [(self.opaque, block.reshape(self.opaque.shape))]
        if self.scaling is not None:
            return [(self.scaling.weights, block.reshape(self.scaling.weights.shape))]
        rows: dict[Any, tuple[int, int]] = {}
        start = 0
        for site_input in self.inputs:
            key = None if site_input.product is None else site_input.product.data_key
            rows[key] = (start, start + site_input.size)
            start += site_input.size
        result = []
        column = 0
        for z in self.pre_activations:
            part = block[:, column : column + z.size]
            column += z.size
            for product in z.products:
                first, last = rows[product.data_key]
                axes = product.weight_axes
                ordered = part[first:last].reshape([product.weights.shape[a] for a in axes])
                result.append((product.weights, ordered.transpose(np.argsort(axes))))
            for bias in z.biases:
                first, _ = rows[None]
                result.append((bias.values, bias.sign * part[first].reshape(bias.values.shape)))
        return result


def plan_sites(discovery: Discovery) -> tuple[SitePlan, ...]:
    """Merges pre-activations with the same inputs, and gives the rest of the parameters a site each."""
    groups: dict[tuple[Any, ...], list[PreActivation]] = {}
    for z in discovery.pre_activations:
        if z.products or z.biases:
            groups.setdefault(z.input_key, []).append(z)
    plans = []
    for members in groups.values():
        first = members[0]
        inputs = [
            SiteInput(product, product.input_size)
            for product in {p.data_key: p for p in first.products}.values()
        ]
        if first.biases:
            inputs.append(SiteInput(None, 1))
        plans.append(SitePlan(tuple(inputs), tuple(members)))
    plans += [
        SitePlan((), (z,), scaling=scaling)
        for z in discovery.pre_activations
        for scaling in z.scalings
    ]
    plans += [SitePlan((), (), opaque=value) for value in discovery.opaque]
    return tuple(plans)
