"""Complex numbers as pairs of real ones.

A linearization is real: the derivative of a function of complex numbers is a linear map of their real
and imaginary parts, whether or not the function is holomorphic. So every complex value of a step is
read as two real values, and sums and products of complex values as sums and products of real ones. Any
other operation stays a single operation, from parts to parts.

A complex leaf of parameters, carry or input counts as two real leaves: the real part, then the
imaginary part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax._src.linearization.program import WHOLE, Atom, Constant, Role

# Operations that are linear over the real numbers: they apply to both parts alike.
_LINEAR = frozenset(
    """add add_any broadcast_in_dim concatenate copy copy_p cumsum dynamic_slice dynamic_update_slice
    expand_dims gather neg optimization_barrier pad reduce_sum reshape rev select_n slice split squeeze
    stop_gradient sub transpose""".split()
)


def is_complex(value: Any) -> bool:
    """Whether an array, or its shape and type, is of complex numbers."""
    return jnp.issubdtype(value.dtype, jnp.complexfloating)


@dataclasses.dataclass(frozen=True, eq=False)
class ComplexAtom:
    """A complex value of a step.

    Attributes:
      real: its real part.
      imaginary: its imaginary part; None where it is 0.
    """

    real: Atom
    imaginary: Atom | None


class _Parts(NamedTuple):
    """A complex value as a pair of arrays."""

    real: Any
    imaginary: Any

    def full(self) -> tuple[Any, Any]:
        """Both parts, with zeros for a missing imaginary part."""
        return self.real, (jnp.zeros_like(self.real) if self.imaginary is None else self.imaginary)


AnyAtom = Atom | ComplexAtom


def flat_atoms(atoms: Sequence[AnyAtom]) -> list[Atom]:
    """The atoms, with complex ones replaced by their parts."""
    flat: list[Atom] = []
    for atom in atoms:
        if isinstance(atom, ComplexAtom):
            flat.append(atom.real)
            if atom.imaginary is not None:
                flat.append(atom.imaginary)
        else:
            flat.append(atom)
    return flat


def atom_of_constant(value: Any) -> AnyAtom:
    """The atom of a constant, in two parts if it is complex."""
    if jnp.issubdtype(jnp.result_type(value), jnp.complexfloating):
        return ComplexAtom(Constant(jnp.real(value)), Constant(jnp.imag(value)))
    return Constant(value)


def real_leaves(tree: Any) -> list[Any]:
    """The leaves of a pytree, each complex one as its real and its imaginary part."""
    leaves: list[Any] = []
    for leaf in jax.tree.leaves(tree):
        leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
        leaves += [jnp.real(leaf), jnp.imag(leaf)] if is_complex(leaf) else [leaf]
    return leaves


def joined(leaves: Sequence[Any], like: Any) -> Any:
    """The pytree with the structure of `like` and these `real_leaves`; a part may be None for zeros."""
    rest: Iterator[Any] = iter(leaves)

    def leaf(shape: Any) -> Any:
        if not is_complex(shape):
            return next(rest)
        real, imaginary = next(rest), next(rest)
        return None if real is None else jax.lax.complex(real, imaginary)

    flat, treedef = jax.tree.flatten(like)
    return jax.tree.unflatten(treedef, [leaf(shape) for shape in flat])


def real_cotangents(tree: Any) -> list[Any]:
    """The derivatives by `real_leaves`, from JAX's cotangents by the leaves.

    JAX's cotangent of z = x + iy is (derivative by x) - i (derivative by y), for a real function.
    """
    return real_leaves(
        jax.tree.map(lambda leaf: jnp.conj(leaf) if is_complex(leaf) else leaf, tree)
    )


def joined_cotangents(leaves: Sequence[Any], like: Any) -> Any:
    """The inverse of `real_cotangents`."""
    return jax.tree.map(
        lambda leaf: jnp.conj(leaf) if is_complex(leaf) else leaf, joined(leaves, like)
    )


def real_form(
    eqn: Any, inputs: Sequence[AnyAtom]
) -> tuple[Callable[..., list[Any]], Callable[[Sequence[AnyAtom]], list[AnyAtom]]]:
    """The real form of an equation with complex inputs or outputs.

    Args:
      eqn: the equation.
      inputs: its inputs.

    Returns:
      A function from the arrays of `flat_atoms(inputs)` to the parts of the outputs; and a function
      from the atoms of these parts to those of the outputs, valid once the first has been traced.
    """
    forms: list[tuple[bool, bool]] = []

    def function(*flat: Any) -> list[Any]:
        rest = iter(flat)
        values = [
            _Parts(next(rest), None if atom.imaginary is None else next(rest))
            if isinstance(atom, ComplexAtom)
            else next(rest)
            for atom in inputs
        ]
        forms.clear()
        parts: list[Any] = []
        for result in _apply(eqn, values, [_role(atom) for atom in inputs]):
            if isinstance(result, _Parts):
                present = result.imaginary is not None
                forms.append((True, present))
                parts += [result.real, result.imaginary] if present else [result.real]
            else:
                forms.append((False, False))
                parts.append(result)
        return parts

    def joined_atoms(atoms: Sequence[AnyAtom]) -> list[AnyAtom]:
        rest: Iterator[Any] = iter(atoms)
        return [
            ComplexAtom(next(rest), next(rest) if present else None) if pair else next(rest)
            for pair, present in forms
        ]

    return function, joined_atoms


def _role(atom: AnyAtom) -> Role:
    roles = {part.role for part in flat_atoms([atom])}
    return next((r for r in (Role.DATA, Role.PARAMETER) if r in roles), Role.CONSTANT)


def _apply(eqn: Any, values: Sequence[Any], roles: Sequence[Role]) -> Sequence[Any]:
    """The outputs of an equation, complex ones in parts."""
    name = eqn.primitive.name
    if name in _LINEAR:
        return _linear(eqn, values)
    if name == "convert_element_type":
        return [_converted(eqn, values[0])]
    if name == "real":
        return [values[0].real]
    if name == "imag":
        return [values[0].full()[1]]
    if name == "complex":
        return [_Parts(*values)]
    if name == "conj":
        (z,) = values
        if not isinstance(z, _Parts):
            return [_Parts(z, None)]
        return [_Parts(z.real, None if z.imaginary is None else -z.imaginary)]
    if name == "square":
        return [_product(eqn, jnp.multiply, values[0], values[0], negate_first=True)]
    if name in ("mul", "dot_general"):
        # The minus sign of i^2 goes to the parameters, so that they meet data only in sums of products.
        first = roles[0] is Role.PARAMETER
        return [_product(eqn, _real_operation(eqn), *values, negate_first=first)]
    if name == "div" and {Role.PARAMETER, Role.DATA} == set(roles):
        inverse = _inverse(values[1])
        first = roles[0] is Role.PARAMETER
        return [_product(eqn, jnp.multiply, values[0], inverse, negate_first=first)]
    return _whole(eqn, values)


def _real_operation(eqn: Any) -> Callable[[Any, Any], Any]:
    """The equation's product, for real arrays."""
    params = dict(eqn.params)
    if params.get("preferred_element_type") is not None:
        params["preferred_element_type"] = _part_type(eqn.outvars[0].aval)
    return lambda x, y: jax_internals.bind(eqn.primitive, params, [x, y])[0]


def _part_type(aval: Any) -> Any:
    """The dtype of the parts of a complex array."""
    return jnp.finfo(aval.dtype).dtype


def _linear(eqn: Any, values: Sequence[Any]) -> Sequence[_Parts]:
    def results(part: Callable[[_Parts], Any]) -> Sequence[Any]:
        operands = [part(v) if isinstance(v, _Parts) else v for v in values]
        return jax_internals.bind(eqn.primitive, eqn.params, operands)

    reals = results(lambda v: v.real)
    if all(v.imaginary is None for v in values if isinstance(v, _Parts)):
        return [_Parts(real, None) for real in reals]
    return [_Parts(*pair) for pair in zip(reals, results(lambda v: v.full()[1]))]


def _converted(eqn: Any, value: Any) -> Any:
    result = eqn.outvars[0].aval
    parts = value if isinstance(value, _Parts) else _Parts(value, None)
    if not is_complex(result):
        return jax.lax.convert_element_type(parts.real, result.dtype)
    dtype = _part_type(result)
    return _Parts(
        *(None if part is None else jax.lax.convert_element_type(part, dtype) for part in parts)
    )


def _product(
    eqn: Any, multiply: Callable[[Any, Any], Any], x: Any, y: Any, *, negate_first: bool
) -> _Parts:
    """(a + ib)(c + id) as sums of products."""
    dtype = _part_type(eqn.outvars[0].aval)
    a, b = x if isinstance(x, _Parts) else (x.astype(dtype), None)
    c, d = y if isinstance(y, _Parts) else (y.astype(dtype), None)
    real, imaginary = multiply(a, c), None
    if b is not None and d is not None:
        real = real + (multiply(-b, d) if negate_first else multiply(b, -d))
    if d is not None:
        imaginary = multiply(a, d)
    if b is not None:
        other = multiply(b, c)
        imaginary = other if imaginary is None else imaginary + other
    return _Parts(real, imaginary)


def _inverse(z: _Parts) -> _Parts:
    real, imaginary = z.full()
    squared = real**2 + imaginary**2
    return _Parts(real / squared, -imaginary / squared)


def _whole(eqn: Any, values: Sequence[Any]) -> Sequence[Any]:
    """The whole operation as one function from parts to parts."""

    def operation(parts: Sequence[Any]) -> list[Any]:
        operands = [jax.lax.complex(*v) if isinstance(v, _Parts) else v for v in parts]
        return [
            _Parts(jnp.real(result), jnp.imag(result)) if is_complex(result) else result
            for result in jax_internals.bind(eqn.primitive, eqn.params, operands)
        ]

    operation.__name__ = WHOLE + jax_internals.origin(eqn.primitive, eqn.source_info)
    full = [_Parts(*v.full()) if isinstance(v, _Parts) else v for v in values]
    results: list[Any] = jax.jit(operation)(full)
    return results
