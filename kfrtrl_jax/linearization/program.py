"""A cell's step as one flat list of equations, read off its jaxpr.

Every value has a role: a constant, a function of parameters alone, or data (anything that depends on
the carry or the input). Equations where parameters meet data are what the rest looks at.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

# Primitives that only wrap a jaxpr: it is read in their place.
_TRANSPARENT = {"jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "remat2"}


# A product of one parameter with this many vectors at once is taken apart into single ones.
MAX_PRODUCTS = 64


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
        return jnp.shape(self.value)


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
        """Whether parameters meet data here, in a way that has a derivative by the parameters."""
        return _meet(self.inputs)

    def apply(self, values: Sequence[Any]) -> Sequence[Any]:
        """The outputs' values."""
        result = self.primitive.bind(*values, **self.primitive.get_bind_params(self.params))
        return result if self.primitive.multiple_results else [result]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A step (params, carry, x) -> (carry, output), flat.

    Attributes:
      parameters: the leaves of params.
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

    def environment(self, params: Any, carry: Any, x: Any) -> Environment:
        """The values that a step starts from."""
        variables = (*self.parameters, *self.carry, *self.inputs)
        return dict(zip(variables, jax.tree.leaves((params, carry, x)), strict=True))


def _meet(atoms: Sequence[Atom]) -> bool:
    return any(atom.role is Role.DATA for atom in atoms) and any(
        isinstance(atom, Variable)
        and atom.role is Role.PARAMETER
        and jnp.issubdtype(atom.dtype, jnp.inexact)
        for atom in atoms
    )


Environment = dict[Variable, Any]


def read(environment: Environment, atom: Atom) -> Any:
    """The value of an atom."""
    return atom.value if isinstance(atom, Constant) else environment[atom]


def evaluate(
    equations: Sequence[Equation],
    environment: Environment,
    added: Mapping[Variable, Any] = MappingProxyType({}),
) -> Environment:
    """The environment with the equations' outputs, except those it already has, added to it.

    Args:
      equations: in order of evaluation.
      environment: the values that are known.
      added: what is added to the values of some outputs.
    """
    environment = dict(environment)
    for equation in equations:
        if all(v in environment for v in equation.outputs):
            continue
        values = equation.apply([read(environment, atom) for atom in equation.inputs])
        for v, value in zip(equation.outputs, values):
            environment[v] = value + added[v] if v in added else value
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
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/") or "(the whole of params)"
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    return Program(
        parameters=parameters,
        paths=tuple(paths),
        carry=states,
        inputs=inputs,
        equations=tuple(equations),
        new_carry=tuple(outputs[: len(states)]),
        output=tuple(outputs[len(states) :]),
    )


def inline_jaxpr(closed: Any, arguments: Sequence[Atom]) -> tuple[list[Equation], list[Atom]]:
    """The flat equations and the outputs of a closed jaxpr called with the arguments."""
    equations: list[Equation] = []
    outputs = _inline(closed.jaxpr, closed.consts, arguments, equations)
    return equations, outputs


def _variables(tree: Any, role: Role) -> tuple[Variable, ...]:
    return tuple(
        Variable(tuple(jnp.shape(leaf)), jnp.result_type(leaf), role)
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
    name = eqn.primitive.name
    if name in _TRANSPARENT:
        return _closed(eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"])
    if not _meet(inputs):
        return None
    roles = [atom.role for atom in inputs]
    arguments = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    simpler: Callable[..., Any] | None = None
    if name == "scan":
        simpler = _iterations(eqn)
    elif name == "dot_general":
        simpler = _single_products(eqn, data=roles.index(Role.DATA))
    elif name in ("gather", "dynamic_slice") and roles[0] is Role.PARAMETER:
        simpler = _look_up(eqn)
    elif name in ("add", "sub", "mul", "div"):
        simpler = _sum_or_product(eqn, roles)
    elif name == "concatenate":
        simpler = _sum_of_parts(eqn)
    elif name == "select_n":
        simpler = _sum_of_cases(eqn, roles)
    elif name == "cond":
        simpler = _chosen_branch(eqn)
    return None if simpler is None else jax.make_jaxpr(simpler)(*arguments)


def _closed(jaxpr: Any) -> Any:
    return jaxpr if hasattr(jaxpr, "consts") else core.ClosedJaxpr(jaxpr, ())


def _iterations(eqn: Any) -> Callable[..., Any]:
    """A scan as its iterations one after another."""
    closed = _closed(eqn.params["jaxpr"])
    body = core.jaxpr_as_fun(closed)
    length, reverse = eqn.params["length"], eqn.params["reverse"]

    # Which operands and results are scanned over is told by their additional axis: the parameters that
    # say so have other names in other versions of JAX.
    def count_scanned(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        return sum(v.aval.ndim > a.aval.ndim for v, a in zip(outer, inner))

    num_carry = len(eqn.outvars) - count_scanned(eqn.outvars, closed.jaxpr.outvars)
    num_xs = count_scanned(eqn.invars, closed.jaxpr.invars)
    num_consts = len(eqn.invars) - num_carry - num_xs

    def iterations(*values: Any) -> Any:
        consts = values[:num_consts]
        carry = list(values[num_consts : num_consts + num_carry])
        xs = values[num_consts + num_carry :]
        ys: list[Any] = [None] * length
        for i in reversed(range(length)) if reverse else range(length):
            result = body(*consts, *carry, *(jax.lax.index_in_dim(x, i, 0, False) for x in xs))
            carry, ys[i] = list(result[:num_carry]), result[num_carry:]
        return [*carry, *(jnp.stack(column) for column in zip(*ys))]

    return iterations


def _single_products(eqn: Any, data: int) -> Callable[..., Any] | None:
    """A product of parameters with several vectors, or of several matrices, as single products."""
    contracting, batch = ((axes[1 - data], axes[data]) for axes in eqn.params["dimension_numbers"])
    weight_shape, data_shape = (eqn.invars[i].aval.shape for i in (1 - data, data))
    weight_free, data_free = (
        [i for i in range(len(shape)) if i not in (*contracting[side], *batch[side])]
        for side, shape in enumerate((weight_shape, data_shape))
    )
    matrices = math.prod(weight_shape[i] for i in batch[0])
    vectors = math.prod(data_shape[i] for i in data_free)
    if not 1 < matrices * vectors <= MAX_PRODUCTS:
        return None
    rows = math.prod(weight_shape[i] for i in contracting[0])
    result = eqn.outvars[0].aval

    def products(*operands: Any) -> Any:
        w = operands[1 - data].transpose(*batch[0], *contracting[0], *weight_free)
        v = operands[data].transpose(*batch[1], *data_free, *contracting[1])
        w, v = w.reshape(matrices, rows, -1), v.reshape(matrices, vectors, rows)
        z = jnp.stack(
            [jnp.stack([v[i, j] @ w[i] for j in range(vectors)]) for i in range(matrices)]
        )
        # dot_general puts the batch axes first, then the free axes of its left operand.
        if data == 1:
            z = z.swapaxes(1, 2)
        return z.reshape(result.shape).astype(result.dtype)

    return products


def _sum_or_product(eqn: Any, roles: Sequence[Role]) -> Callable[..., Any] | None:
    """Sums and products of two arrays of one shape; differences and quotients as these."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    parameters_first = roles[0] is Role.PARAMETER
    if any(v.aval.shape != shape for v in eqn.invars):

        def spread(*operands: Any) -> Any:
            values = [jnp.broadcast_to(x, shape) for x in operands]
            return eqn.primitive.bind(*values, **eqn.params)

        return spread
    if name == "sub" and parameters_first:
        return lambda parameters, data: -data + parameters
    if name == "div" and not parameters_first:
        return lambda data, parameters: data * (1 / parameters)
    if name == "div":
        return lambda parameters, data: parameters * (1 / data)
    return None


def _sum_of_parts(eqn: Any) -> Callable[..., Any]:
    """A concatenation as the sum of its parts, each with zeros around it."""
    axis = eqn.params["dimension"]
    sizes = [v.aval.shape[axis] for v in eqn.invars]

    def padded(*parts: Any) -> Any:
        before, result = 0, None
        for part, size in zip(parts, sizes):
            widths = [(0, 0)] * part.ndim
            widths[axis] = (before, sum(sizes) - before - size)
            placed = jnp.pad(part, widths)
            result = placed if result is None else result + placed
            before += size
        return result

    return padded


def _sum_of_cases(eqn: Any, roles: Sequence[Role]) -> Callable[..., Any] | None:
    """A choice between parameters and data as a sum: parameters times a mask, data where chosen."""
    if roles[0] is Role.PARAMETER:
        return None
    shape, dtype = eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype

    def chosen(which: Any, *cases: Any) -> Any:
        result = jnp.zeros(shape, dtype)
        for i, (case, role) in enumerate(zip(cases, roles[1:])):
            here = jnp.broadcast_to(which == i, shape)
            if role is Role.PARAMETER:
                result = result + case * here.astype(dtype)
            else:
                result = result + jnp.where(here, case, 0)
        return result

    return chosen


def _chosen_branch(eqn: Any) -> Callable[..., Any]:
    """A conditional as a choice between the results of all its branches."""
    branches = [core.jaxpr_as_fun(_closed(branch)) for branch in eqn.params["branches"]]

    def chosen(which: Any, *operands: Any) -> Any:
        results = [branch(*operands) for branch in branches]
        return [
            jax.lax.select_n(
                jnp.broadcast_to(jnp.clip(which, 0, len(cases) - 1), cases[0].shape), *cases
            )
            if len(cases) > 1
            else cases[0]
            for cases in zip(*results)
        ]

    return chosen


def _look_up(eqn: Any) -> Callable[..., Any] | None:
    """A row of a table of parameters, chosen by data, as the product with a one-hot vector."""
    table = eqn.invars[0].aval
    result = eqn.outvars[0].aval
    if table.ndim == 0 or not jnp.issubdtype(table.dtype, jnp.inexact):
        return None
    sizes = tuple(eqn.params["slice_sizes"])
    if sizes != (1, *table.shape[1:]) or math.prod(result.shape) != math.prod(sizes):
        return None
    if eqn.primitive.name == "gather":
        numbers = eqn.params["dimension_numbers"]
        if tuple(numbers.start_index_map) != (0,) or tuple(numbers.operand_batching_dims):
            return None
        fill = eqn.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
    else:
        fill = False

    def row(values: Any, *indices: Any) -> Any:
        index = indices[0].reshape(())
        kept = jnp.clip(index, 0, table.shape[0] - 1)
        chosen = jax.nn.one_hot(kept, table.shape[0], dtype=table.dtype)
        z = (chosen @ values.reshape(table.shape[0], -1)).reshape(result.shape)
        return jnp.where(kept == index, z, jnp.nan) if fill else z

    return row


def source_line(equation: Equation) -> str:
    """Where in the user's code an equation comes from: "file.py:12"."""
    frames = equation.source.traceback.frames if equation.source.traceback else []
    for frame in frames:
        if not any(part in frame.file_name for part in ("/jax/", "/kfrtrl_jax/linearization/")):
            return f"{frame.file_name.rsplit('/', 1)[-1]}:{frame.line_num}"
    return "an unknown line"
