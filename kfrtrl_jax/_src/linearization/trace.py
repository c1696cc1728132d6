"""From a cell's step to its flat program: its jaxpr, with wrapped jaxprs inlined."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax._src.lanes import is_key
from kfrtrl_jax._src.linearization import complex_numbers, custom_rules, rewrites
from kfrtrl_jax._src.linearization.complex_numbers import AnyAtom, ComplexAtom, flat_atoms
from kfrtrl_jax._src.linearization.program import (
    WHOLE,
    Atom,
    Constant,
    Equation,
    Loop,
    LoopBody,
    Role,
    TracedStep,
    Variable,
    has_gradient,
    meet,
)

# Operations without a derivative that could be infinite: no guard is needed in front of them.
_SAFE = frozenset(
    """add add_any broadcast_in_dim concatenate convert_element_type copy copy_p expand_dims neg pad
    reduce_sum reshape rev select_n slice split squeeze stop_gradient sub transpose""".split()
)

# A scan of no more iterations is read as these, one after another.
_SHORT = 4

# What the body of a scan is rewritten for.
_PREPARED = jax_internals.CUSTOM_PULLBACKS | {"cond"}


def trace(
    step: Callable[..., Any],
    params: Any,
    carry: Any,
    x: Any,
    follows: Callable[[Loop], bool] = lambda loop: False,
) -> TracedStep:
    """Reads the step's jaxpr; params, carry and x may be arrays or `jax.ShapeDtypeStruct`s.

    Args:
      step: of a cell.
      params: its parameters.
      carry: its carry.
      x: its input.
      follows: whether a long scan in which parameters meet data may stay one.

    Raises:
      UnsupportedCellError: if the step holds a derivative rule that is not a linear map.
    """
    closed = jax.make_jaxpr(step)(params, carry, x)
    custom_rules.refuse_nonlinear_rules(closed.jaxpr)
    parameters = _atoms(params, Role.PARAMETER)
    states = _atoms(carry, Role.DATA)
    inputs = _atoms(x, Role.DATA)
    inliner = _Inliner(follows)
    results = inliner.jaxpr(closed, [*parameters, *states, *inputs], _Context())
    outputs = [inliner.full(atom) for atom in results]
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/") or "(the whole of params)"
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    return TracedStep(
        parameters=_variables(parameters),
        paths=tuple(p for atom, p in zip(parameters, paths) for _ in flat_atoms([atom])),
        carry=_variables(states),
        inputs=_variables(inputs),
        equations=tuple(inliner.equations),
        new_carry=tuple(flat_atoms(outputs[: len(states)])),
        output=tuple(flat_atoms(outputs[len(states) :])),
    )


def inline_jaxpr(closed: Any, arguments: Sequence[Atom]) -> tuple[list[Equation], list[Atom]]:
    """The flat equations and the outputs of a closed jaxpr, complex values and all, as they are."""
    inliner = _Inliner()
    outputs = inliner.jaxpr(closed, arguments, _Context(as_it_is=True))
    return inliner.equations, flat_atoms(outputs)


def _atoms(tree: Any, role: Role) -> list[AnyAtom]:
    """A value for each leaf of a pytree."""
    atoms: list[AnyAtom] = []
    for leaf in jax.tree.leaves(tree):
        leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
        if complex_numbers.is_complex(leaf):
            part = jnp.finfo(leaf.dtype).dtype
            pair = (Variable(tuple(leaf.shape), part, role) for _ in range(2))
            atoms.append(ComplexAtom(*pair))
        else:
            fixed = role is Role.PARAMETER and not jnp.issubdtype(leaf.dtype, jnp.inexact)
            atoms.append(Variable(tuple(leaf.shape), leaf.dtype, role, fixed))
    return atoms


def _variables(atoms: Sequence[AnyAtom]) -> tuple[Variable, ...]:
    return tuple(atom for atom in flat_atoms(atoms) if isinstance(atom, Variable))


@dataclasses.dataclass(frozen=True)
class _Context:
    """Where equations stand.

    Attributes:
      uses: how often a step comes through them: the iterations of the unrolled scans around them.
      taken: whether a step comes through them at all, for those in a branch of a conditional.
      as_it_is: whether they are kept unchanged, except for inlining.
      prepared: whether derivative rules, and the bodies of scans, are already as they should be.
    """

    uses: int = 1
    taken: Atom | None = None
    as_it_is: bool = False
    prepared: bool = False


class _Inliner:
    """Collects the equations of jaxprs, wrapped ones looked into."""

    def __init__(
        self, follows: Callable[[Loop], bool] = lambda loop: False, around: _Inliner | None = None
    ) -> None:
        self.equations: list[Equation] = []
        self._follows = follows
        # What no iteration of a loop changes stands before it.
        self._of_no_data: list[Equation] = around._of_no_data if around else self.equations
        self._known: dict[Any, tuple[Variable, ...]] = around._known if around else {}

    def jaxpr(self, closed: Any, arguments: Sequence[AnyAtom], context: _Context) -> list[AnyAtom]:
        """Collects a closed jaxpr's equations; returns its outputs."""
        constant = Constant if context.as_it_is else complex_numbers.atom_of_constant
        atoms: dict[Any, AnyAtom] = dict(zip(closed.jaxpr.invars, arguments))
        atoms.update(zip(closed.jaxpr.constvars, map(constant, closed.consts)))

        def atom_of(var: Any) -> AnyAtom:
            return constant(var.val) if isinstance(var, jax_internals.Literal) else atoms[var]

        for eqn in closed.jaxpr.eqns:
            outputs = self._equation(eqn, [atom_of(var) for var in eqn.invars], context)
            atoms.update(zip(eqn.outvars, outputs))
        return [atom_of(var) for var in closed.jaxpr.outvars]

    def full(self, atom: AnyAtom) -> AnyAtom:
        """A complex value with both its parts."""
        if not isinstance(atom, ComplexAtom) or atom.imaginary is not None:
            return atom
        (zeros,) = self._call(jnp.zeros_like, [atom.real], _Context())
        assert not isinstance(zeros, ComplexAtom)
        return ComplexAtom(atom.real, zeros)

    def _equation(
        self, eqn: Any, inputs: Sequence[AnyAtom], context: _Context
    ) -> Sequence[AnyAtom]:
        """Collects one equation, or what is read in its place; returns its outputs."""
        if _is_empty(eqn):
            zeros = [np.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars]
            return list(map(complex_numbers.atom_of_constant, zeros))
        name = eqn.primitive.name
        meets = meet(flat_atoms(inputs))
        if name in jax_internals.TRANSPARENT:
            if str(eqn.params.get("name", "")).startswith(WHOLE):
                if meets:
                    return self._append(eqn, flat_atoms(inputs), context)
                context = dataclasses.replace(context, as_it_is=True)
            return self.jaxpr(jax_internals.wrapped_jaxpr(eqn.params), inputs, context)
        if context.as_it_is:
            return self._append(eqn, flat_atoms(inputs), context)
        if name == "cond":
            return self._branches(eqn, inputs, context)
        if name == "scan":
            if meets and eqn.params["length"] > _SHORT:
                loop = self._loop(eqn, inputs, context)
                if loop is not None:
                    return loop.outputs
            uses = context.uses * eqn.params["length"]
            if meets and uses <= rewrites.MAX_USES:
                unrolled = dataclasses.replace(context, uses=uses)
                return self._call(rewrites.iterations(eqn), inputs, unrolled, eqn)
            body = jax_internals.closed(eqn.params["jaxpr"])
            inside = {e.primitive.name for e in jax_internals.all_equations(body.jaxpr)}
            if not context.prepared and not _PREPARED.isdisjoint(inside):
                scan = rewrites.scan_of(eqn, _flat(body))
                return self._call(scan, inputs, dataclasses.replace(context, prepared=True), eqn)
        outputs = [v.aval for v in eqn.outvars]
        if any(isinstance(a, ComplexAtom) for a in inputs) or any(map(_is_complex, outputs)):
            function, joined = complex_numbers.real_form(eqn, inputs)
            return joined(self._call(function, flat_atoms(inputs), context))
        atoms = flat_atoms(inputs)
        if name in jax_internals.CUSTOM_PULLBACKS and not context.prepared:
            rule = custom_rules.by_lane(eqn.primitive, eqn.params)
            return self._call(rule, atoms, dataclasses.replace(context, prepared=True))
        if meets:
            found = rewrites.simpler(eqn, list(map(_role, atoms)))
            if found is not None:
                return self._call(found, atoms, context)
        return self._append(eqn, atoms, context)

    def _append(self, eqn: Any, inputs: Sequence[Atom], context: _Context) -> Sequence[Variable]:
        if context.taken is not None and eqn.primitive.name not in _SAFE:
            inputs = [self._guarded(atom, meet(inputs), context) for atom in inputs]
        roles = {atom.role for atom in inputs}
        role = next((r for r in (Role.DATA, Role.PARAMETER) if r in roles), Role.CONSTANT)
        fixed = role is Role.PARAMETER and not any(
            isinstance(a, Variable) and a.role is Role.PARAMETER and not a.fixed for a in inputs
        )
        outputs = tuple(
            Variable(tuple(v.aval.shape), v.aval.dtype, role, fixed) for v in eqn.outvars
        )
        if role is not Role.DATA:
            # Equal expressions of parameters, such as a matrix transposed at every use, are merged.
            key = _expression(eqn, inputs)
            known = outputs if key is None else self._known.setdefault(key, outputs)
            if known is not outputs:
                return known
        equation = Equation(eqn.primitive, eqn.params, tuple(inputs), outputs, eqn.source_info)
        (self.equations if role is Role.DATA else self._of_no_data).append(equation)
        return outputs

    def _loop(self, eqn: Any, inputs: Sequence[AnyAtom], context: _Context) -> Loop | None:
        """Collects a scan with its body looked into; None if it is to be read in another way."""
        counts = rewrites.scan_sizes(eqn)
        if context.taken is not None or any(isinstance(a, ComplexAtom) for a in inputs):
            return None
        constants, carried, scanned = rewrites.parts(flat_atoms(inputs), counts)
        if any(map(has_gradient, (*carried, *scanned))):
            return None
        body = jax_internals.closed(eqn.params["jaxpr"])
        # Constants without data are read where they stand.
        start = [
            outer
            if i < len(constants) and outer.role is not Role.DATA
            else Variable(tuple(v.aval.shape), v.aval.dtype, Role.DATA)
            for i, (outer, v) in enumerate(zip(flat_atoms(inputs), body.jaxpr.invars))
        ]
        inner = _Inliner(self._follows, around=self)
        results = inner.jaxpr(body, start, _Context(prepared=context.prepared))
        if any(isinstance(r, ComplexAtom) for r in results):
            return None
        outer_constants = [a for a in constants if a.role is Role.DATA]
        fresh_constants, fresh_carried, fresh_scanned = rewrites.parts(start, counts)
        new_carried, stacked = results[: len(carried)], results[len(carried) :]
        read = [a for e in inner.equations for a in e.inputs] + flat_atoms(results)
        captured = dict.fromkeys(
            a for a in read if isinstance(a, Variable) and a.role is not Role.DATA
        )
        loop = Loop(
            eqn.primitive,
            eqn.params,
            (*outer_constants, *carried, *scanned, *captured),
            tuple(Variable(tuple(v.aval.shape), v.aval.dtype, Role.DATA) for v in eqn.outvars),
            eqn.source_info,
            LoopBody(
                _variables([v for v in fresh_constants if v.role is Role.DATA]),
                _variables(fresh_carried),
                _variables(fresh_scanned),
                tuple(captured),
                tuple(inner.equations),
                tuple(flat_atoms(new_carried)),
                tuple(flat_atoms(stacked)),
            ),
        )
        if not self._follows(loop):
            return None
        self.equations.append(loop)
        return loop

    def _call(
        self,
        function: Callable[..., Any],
        atoms: Sequence[AnyAtom],
        context: _Context,
        eqn: Any = None,
    ) -> list[AnyAtom]:
        """Collects the equations of a function of these atoms.

        Args:
          function: of arrays like the atoms; with an equation given, like its inputs.
          atoms: the arguments.
          context: where they stand.
          eqn: the equation in whose place the function is read, if its inputs may be complex.
        """
        avals: Sequence[Any] = [v.aval for v in eqn.invars] if eqn is not None else atoms
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
        return self.jaxpr(jax.make_jaxpr(function)(*shapes), atoms, context)

    def _branches(self, eqn: Any, inputs: Sequence[AnyAtom], context: _Context) -> list[AnyAtom]:
        """A conditional as a choice between the results of all its branches.

        A branch that is not taken has no part in the derivative, even if its own is infinite: its
        inputs are guarded.
        """
        which, *operands = inputs
        branches = [jax_internals.closed(branch) for branch in eqn.params["branches"]]
        results = []
        for i, branch in enumerate(branches):

            def is_taken(which: Any, *outer: Any, i: int = i) -> Any:
                here = jnp.clip(which, 0, len(branches) - 1) == i
                return here & outer[0] if outer else here

            outer = [] if context.taken is None else [context.taken]
            (taken,) = self._call(is_taken, [which, *outer], _Context())
            assert not isinstance(taken, ComplexAtom)
            inside = dataclasses.replace(context, taken=taken)
            results.append([self.full(r) for r in self.jaxpr(branch, operands, inside)])
        return [self._choice(which, cases, context) for cases in zip(*results)]

    def _choice(self, which: AnyAtom, cases: Sequence[AnyAtom], context: _Context) -> AnyAtom:
        def chosen(which: Any, *cases: Any) -> Any:
            index = jnp.broadcast_to(jnp.clip(which, 0, len(cases) - 1), cases[0].shape)
            # A choice between two takes a boolean in every version of JAX.
            return jax.lax.select_n(index.astype(bool) if len(cases) == 2 else index, *cases)

        if len(cases) == 1:
            return cases[0]
        parts = []
        for part in zip(*(flat_atoms([case]) for case in cases)):
            (result,) = self._call(chosen, [which, *part], context)
            parts.append(result)
        return parts[0] if len(parts) == 1 else ComplexAtom(*parts)  # type: ignore[arg-type]

    def _guarded(self, atom: Atom, meets: bool, context: _Context) -> Atom:
        """Data that are read in a branch, such that nothing flows back where it is not taken.

        Where they meet parameters they are 0 there, or an infinite value would be multiplied by the 0.
        """
        if atom.role is not Role.DATA or not jnp.issubdtype(atom.dtype, jnp.inexact):
            return atom

        def guarded(taken: Any, value: Any) -> Any:
            absent = jnp.zeros_like(value) if meets else jax.lax.stop_gradient(value)
            return jnp.where(taken, value, absent)

        assert context.taken is not None
        outside = dataclasses.replace(context, taken=None, as_it_is=True)
        (result,) = self._call(guarded, [context.taken, atom], outside)
        assert not isinstance(result, ComplexAtom)
        return result


def _role(atom: Atom) -> Role:
    """An atom's role, a constant's for parameters that have no derivative."""
    fixed = isinstance(atom, Variable) and atom.fixed
    return Role.CONSTANT if fixed else atom.role


def _is_empty(eqn: Any) -> bool:
    """Whether an equation has results, and none of them an element."""
    results = [v.aval for v in eqn.outvars]
    return bool(results) and all(0 in getattr(a, "shape", ()) and not is_key(a) for a in results)


def _expression(eqn: Any, inputs: Sequence[Atom]) -> Any:
    """What tells whether two equations compute the same; None if nothing does.

    Jaxprs and functions among the parameters are the same only if they are the same object: what they
    print does not show the arrays that they hold, nor the derivative rules. What they print tells 0
    from -0 and False.
    """
    key = (
        eqn.primitive,
        tuple(sorted(eqn.params.items())),
        repr(eqn.params),
        tuple(map(_identity, inputs)),
    )
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _identity(atom: Atom) -> Any:
    """What tells whether two inputs are the same value."""
    if isinstance(atom, Variable):
        return atom
    if atom.shape or jax_internals.is_traced(atom.value) or is_key(atom):
        return id(atom.value)
    # All digits, which a scalar array does not print.
    return str(atom.dtype), np.asarray(atom.value).tobytes()


def _is_complex(aval: Any) -> bool:
    return complex_numbers.is_complex(aval)


def _flat(body: Any) -> Callable[..., Sequence[Any]]:
    """The body of a scan as a function that goes through its flat equations."""

    def function(*values: Any) -> Sequence[Any]:
        arguments = _atoms(list(values), Role.DATA)
        inliner = _Inliner()
        outputs = [inliner.full(a) for a in inliner.jaxpr(body, arguments, _Context())]
        leaves = complex_numbers.real_leaves(list(values))
        environment = dict(zip(_variables(arguments), leaves))
        for equation in inliner.equations:
            read = [a.value if isinstance(a, Constant) else environment[a] for a in equation.inputs]
            environment.update(zip(equation.outputs, equation.apply(read)))
        results = [
            a.value if isinstance(a, Constant) else environment[a] for a in flat_atoms(outputs)
        ]
        like = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in body.jaxpr.outvars]
        joined: Sequence[Any] = complex_numbers.joined(results, like)
        return joined

    return function
