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
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.linearization.patterns import move
from kfrtrl_jax._src.linearization.program import (
    Constant,
    Environment,
    Equation,
    Program,
    Role,
    Variable,
    has_gradient,
    needed,
    origin,
)
from kfrtrl_jax._src.linearization.rewrites import MAX_USES
from kfrtrl_jax._src.matrices import take

_TOO_OFTEN = f"a step uses it more than {MAX_USES} times"

# Operations that only choose among elements and change their places, none of them twice.
SELECTING = frozenset("expand_dims reshape rev slice split squeeze transpose".split())


class Product(NamedTuple):
    """The term W^T a of a pre-activation, as a dot_general makes it.

    Attributes:
      weights: the parameter-only operand.
      data: the other operand.
      weight_axes: the order of the operand's axes that reshapes it to [m, columns].
      data_axes: the order of the operand's axes that reshapes it to [m].
      input_size: m.
      select: [g], the columns that make the pre-activation.
    """

    weights: Variable
    data: Variable
    weight_axes: tuple[int, ...]
    data_axes: tuple[int, ...]
    input_size: int
    select: np.ndarray

    @property
    def data_key(self) -> tuple[Variable, tuple[int, ...]]:
        """What tells whether two products read the same vector."""
        return self.data, self.data_axes

    def matrix(self, value: Any) -> Any:
        """[m, g] from the operand's value."""
        return take(self._columns(value), self.select, axis=-1)

    def nonzero(self, mask: np.ndarray) -> np.ndarray:
        """[m, g] from a mask of the operand."""
        return self._columns(mask)[:, self.select]

    def _columns(self, value: Any) -> Any:
        return value.transpose(self.weight_axes).reshape(self.input_size, -1)

    def vector(self, value: Any) -> Any:
        """[m] from the data operand's value, or its pattern of indices."""
        return value.transpose(self.data_axes).reshape(-1)


class Bias(NamedTuple):
    """The term b (or -b) of a pre-activation; select: [g], the elements of b."""

    weights: Variable
    sign: int
    select: np.ndarray


class Scaling(NamedTuple):
    """The term w * v of a pre-activation, element by element; select: [g], the elements of both."""

    weights: Variable
    data: Variable
    select: np.ndarray

    def vector(self, value: Any) -> Any:
        """[g] from the value of the weights or of the data, or its pattern of indices."""
        return value.reshape(-1)[self.select]


class Rest(NamedTuple):
    """The term v of a pre-activation that is data alone, as in v + b; select: [g], its elements."""

    data: Variable
    select: np.ndarray

    def vector(self, value: Any) -> Any:
        """[g] from the data's value, or its pattern of indices."""
        return value.reshape(-1)[self.select]


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
      opaque: parameter-only values that meet data in an operation of no known structure, with what the
        operation is and why it does not fit ("" for one that is itself a new state); the whole value
        is then its own site.
    """

    equations: tuple[Equation, ...]
    prefix: tuple[Equation, ...]
    pre_activations: tuple[PreActivation, ...]
    opaque: dict[Variable, str]


def discover(program: Program) -> Discovery:
    """Finds the sites of a step."""
    equations = needed(program.equations, program.new_carry)
    prefix = [e for e in equations if all(v.role is not Role.DATA for v in e.outputs)]
    body = [e for e in equations if all(v.role is not Role.PARAMETER for v in e.outputs)]
    readers: dict[Variable, list[Equation | None]] = collections.defaultdict(list)
    for equation in body:
        for atom in equation.inputs:
            if isinstance(atom, Variable):
                readers[atom].append(equation)
    for atom in program.new_carry:
        if isinstance(atom, Variable):
            readers[atom].append(None)
    sums: dict[Variable, tuple[Term, ...]] = {}
    opaque: dict[Variable, str] = {}
    overused = _overused(body)

    for equation in body:
        output = equation.outputs[0]
        if equation.is_meeting:
            found = _TOO_OFTEN if overused & set(equation.inputs) else _term(equation)
            if isinstance(found, str):
                for atom in equation.inputs:
                    if has_gradient(atom):
                        assert isinstance(atom, Variable)
                        opaque.setdefault(atom, _problem(program, prefix, equation, atom, found))
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
            # Gates are cut out of a product, or parts of one sum out of several: the cut is moved in
            # front of the products, so that sums are seen as sums. Only if nothing reads the whole.
            (whole, *_) = equation.inputs
            if isinstance(whole, Variable) and whole in sums and _only_selected(readers[whole]):
                places = np.arange(math.prod(whole.shape)).reshape(whole.shape)
                for variable, chosen in zip(equation.outputs, move(equation, [places])):
                    flat = chosen.reshape(-1)
                    sums[variable] = tuple(t._replace(select=t.select[flat]) for t in sums[whole])
    whole_ones = [v for v in sums if readers[v] and _only_selected(readers[v])]
    for variable in whole_ones:
        del sums[variable]
    for atom in program.new_carry:
        if isinstance(atom, Variable) and has_gradient(atom):
            opaque.setdefault(atom, "")
    pre_activations = [PreActivation(variable, terms) for variable, terms in sums.items()]
    order = {v: i for i, e in enumerate(body) for v in e.outputs}
    pre_activations.sort(key=lambda z: order[z.variable])
    return Discovery(tuple(body), tuple(prefix), tuple(pre_activations), opaque)


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


def _problem(
    program: Program, prefix: list[Equation], equation: Equation, atom: Variable, why: str
) -> str:
    names = " + ".join(parameter_paths(program, prefix, [atom]))
    return f"{origin(equation)} takes the parameter {names}: {why}"


def parameter_paths(
    program: Program, prefix: Sequence[Equation], values: Sequence[Variable]
) -> list[str]:
    """The paths, in the user's tree, of the parameters that parameter-only values are made of."""
    chain = needed(prefix, values)
    behind = {*values, *(atom for e in chain for atom in e.inputs)}
    # The two parts of a complex parameter have one path.
    found = [path for v, path in zip(program.parameters, program.paths) if v in behind]
    return list(dict.fromkeys(found))


def _term(equation: Equation) -> Term | str:
    """The term that a meeting makes, or why it makes none."""
    if equation.name == "scan":
        return (
            f"with its {equation.params['length']} iterations a step would use it more than "
            f"{MAX_USES} times"
        )
    if len(equation.inputs) != 2 or len(equation.outputs) != 1:
        return "it is not a product of parameters with data, nor a sum"
    first, second = equation.inputs
    if isinstance(first, Constant) or isinstance(second, Constant):
        return "it is not a product of parameters with data, nor a sum"
    parameters, data = (first, second) if first.role is Role.PARAMETER else (second, first)
    if equation.name == "dot_general":
        return _product(equation, parameters, data)
    if equation.name not in ("add", "add_any", "sub", "mul") or (
        equation.name == "sub" and parameters is first
    ):
        return "it is not a product of parameters with data, nor a sum"
    if parameters.shape != equation.outputs[0].shape or data.shape != parameters.shape:
        return "its operands differ in shape"
    everything = np.arange(math.prod(parameters.shape))
    if equation.name == "mul":
        return Scaling(parameters, data, everything)
    return Bias(parameters, -1 if equation.name == "sub" else 1, everything)


def _product(equation: Equation, weights: Variable, data: Variable) -> Product | str:
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    weights_first = equation.inputs[0] is weights
    weight_axes, data_axes = (left, right) if weights_first else (right, left)
    weight_batch, data_batch = (
        (left_batch, right_batch) if weights_first else (right_batch, left_batch)
    )
    data_free = [a for a in range(len(data.shape)) if a not in (*data_axes, *data_batch)]
    if any(data.shape[axis] != 1 for axis in (*data_free, *data_batch)):
        return _TOO_OFTEN
    free = [a for a in range(len(weights.shape)) if a not in (*weight_axes, *weight_batch)]
    return Product(
        weights,
        data,
        (*weight_axes, *weight_batch, *free),
        (*data_axes, *data_batch, *data_free),
        math.prod(weights.shape[axis] for axis in weight_axes),
        np.arange(math.prod(weights.shape[axis] for axis in free)),
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
      problem: why it has none.
    """

    inputs: tuple[SiteInput, ...]
    pre_activations: tuple[PreActivation, ...]
    scaling: Scaling | None = None
    opaque: Variable | None = None
    problem: str | None = None

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

    def input(self, environment: Environment, dtype: Any) -> Any:
        """a, [m], at the values of a step: the constant 1 for what is no product."""
        vectors = [
            jnp.ones(1, dtype)
            if site_input.product is None
            else site_input.product.vector(environment[site_input.product.data]).astype(dtype)
            for site_input in self.inputs
        ] or [jnp.ones(1, dtype)]
        return vectors[0] if len(vectors) == 1 else jnp.concatenate(vectors)

    def sources(self) -> list[Variable]:
        """What the columns of D belong to: its pre-activations, or the opaque value."""
        if self.opaque is not None:
            return [self.opaque]
        return [z.variable for z in self.pre_activations]

    def weights(self) -> list[Variable]:
        """The parameter-only values that the site's block of weights holds, each once."""
        if self.opaque is not None:
            return [self.opaque]
        if self.scaling is not None:
            return [self.scaling.weights]
        found: dict[Variable, None] = {}
        for z in self.pre_activations:
            found.update(dict.fromkeys(product.weights for product in z.products))
            found.update(dict.fromkeys(bias.weights for bias in z.biases))
        return list(found)

    def _rows(self) -> dict[Any, tuple[int, int]]:
        """For each vector of data by its key, and the biases by None, its first row and its end."""
        rows: dict[Any, tuple[int, int]] = {}
        start = 0
        for site_input in self.inputs:
            key = None if site_input.product is None else site_input.product.data_key
            rows[key] = (start, start + site_input.size)
            start += site_input.size
        return rows

    def nonzero(self, masks: Mapping[Variable, np.ndarray]) -> np.ndarray | None:
        """Which entries of the block of weights can be non-zero, [m, g]; None for all of them.

        Args:
          masks: where parameter-only values can be non-zero, for those with known zeros.
        """
        if not any(weights in masks for weights in self.weights()):
            return None
        if self.opaque is not None:
            return masks[self.opaque].reshape(1, -1)

        def mask_of(weights: Variable) -> np.ndarray:
            return masks.get(weights, np.ones(weights.shape, bool))

        rows = self._rows()
        whole = np.zeros((self.input_size, self.output_size), bool)
        column = 0
        if self.scaling is not None:
            whole[0] = self.scaling.vector(masks[self.scaling.weights])
        for z in self.pre_activations if self.scaling is None else ():
            columns = slice(column, column + z.size)
            for product in z.products:
                whole[slice(*rows[product.data_key]), columns] |= product.nonzero(
                    mask_of(product.weights)
                )
            for bias in z.biases:
                whole[slice(*rows[None]), columns] |= mask_of(bias.weights).reshape(-1)[bias.select]
            column += z.size
        return None if whole.all() else whole

    def cotangents(self, block: Any) -> list[tuple[Variable, Any]]:
        """The gradient of each of `weights()`, from the gradient of the block, [m, g]."""
        if self.opaque is not None:
            return [(self.opaque, block.reshape(self.opaque.shape))]
        if self.scaling is not None:
            weights = self.scaling.weights
            whole = _spread(block, [(self.scaling.select, 0)], math.prod(weights.shape))
            return [(weights, whole.reshape(weights.shape))]
        rows = self._rows()
        # One parameter may stand in several places: what each place takes of it is put together.
        products: dict[Any, list[tuple[Product, int]]] = {}
        biases: dict[Any, list[tuple[Bias, int]]] = {}
        column = 0
        for z in self.pre_activations:
            for product in z.products:
                place = (product.weights, product.weight_axes, product.data_key)
                products.setdefault(place, []).append((product, column))
            for bias in z.biases:
                biases.setdefault((bias.weights, bias.sign), []).append((bias, column))
            column += z.size
        result = []
        for placed in products.values():
            weights, axes = placed[0][0].weights, placed[0][0].weight_axes
            first, last = rows[placed[0][0].data_key]
            shape = [weights.shape[a] for a in axes]
            whole = _spread(
                block[first:last],
                [(p.select, column) for p, column in placed],
                math.prod(shape) // (last - first),
            )
            result.append((weights, whole.reshape(shape).transpose(np.argsort(axes))))
        for (weights, sign), members in biases.items():
            first, last = rows[None]
            whole = _spread(
                block[first:last],
                [(b.select, column) for b, column in members],
                math.prod(weights.shape),
            )
            result.append((weights, sign * whole.reshape(weights.shape)))
        return result


def _spread(block: Any, selections: Sequence[tuple[np.ndarray, int]], size: int) -> Any:
    """Columns of a gradient put back where they were selected from.

    Args:
      block: [m, columns].
      selections: for each part, its elements' places in the whole, and its first column.
      size: of the whole; the result is [m, size].
    """
    layers = [np.full(size, -1)]
    for select, column in selections:
        columns = np.arange(column, column + len(select))
        layer = next((x for x in layers if np.all(x[select] < 0)), None)
        if layer is None:
            layer = np.full(size, -1)
            layers.append(layer)
        layer[select] = columns
    terms = [take(block, layer, axis=-1) for layer in layers]
    return sum(terms[1:], terms[0])


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
    plans += [
        SitePlan((), (), opaque=value, problem=problem or None)
        for value, problem in discovery.opaque.items()
    ]
    return tuple(plans)
