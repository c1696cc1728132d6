"""Zeros whatever the parameters are: fixed masks on weights, and values computed from masked weights.

Only values that depend on parameters and constants alone are considered; the parameters themselves
count as non-zero everywhere. The outputs of an operation without a rule here may be non-zero
everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax._src.linearization.program import (
    Atom,
    Constant,
    Equation,
    Role,
    Variable,
    evaluate,
    is_inexact,
    needed,
)

# f(0) = 0, element by element.
_ZERO_PRESERVING_UNARY = frozenset(
    """abs asin asinh atan atanh cbrt ceil conj convert_element_type copy copy_p erf erf_inv expm1 floor
    imag log1p name neg real reduce_precision round sign sin sinh sqrt square stop_gradient tan
    tanh""".split()
)
# f(0, 0) = 0, element by element.
_ZERO_PRESERVING_BINARY = frozenset("add add_any max min sub".split())
# Sums of products of the inputs' elements, and selections of elements: applied to masks of zeros and
# ones in place of the inputs, they give zero exactly where zeros are known.
_ZERO_PRESERVING_LINEAR = frozenset(
    """broadcast_in_dim concatenate cumsum dot_general dynamic_slice dynamic_update_slice expand_dims
    gather pad reduce_sum reshape rev scatter scatter-add slice split squeeze transpose""".split()
)

# Where a value can be non-zero; None for everywhere.
_Mask = np.ndarray | None
_MaskOf = Callable[[Atom], _Mask]


def nonzero_masks(prefix: Sequence[Equation]) -> dict[Variable, np.ndarray]:
    """For every parameter-only value with known zeros, a boolean array of where it can be non-zero.

    Args:
      prefix: the parameter-only equations and those of the constants that they need, in order.
    """
    masks: dict[Variable, np.ndarray] = {}
    constants = _Constants(prefix)

    def mask_of(atom: Atom) -> _Mask:
        if isinstance(atom, Variable) and atom.role is Role.PARAMETER:
            return masks.get(atom)
        value = constants.value(atom)
        mask = None if value is None else np.asarray(value) != 0
        return None if mask is None or mask.all() else mask

    for equation in prefix:
        if all(v.role is Role.PARAMETER for v in equation.outputs):
            found = _apply(equation, mask_of, constants)
            for variable, mask in zip(equation.outputs, found):
                if mask is not None and not np.all(mask):
                    masks[variable] = np.broadcast_to(mask, variable.shape)
    return masks


class _Constants:
    """Values that were known when the step was traced, computed on demand."""

    def __init__(self, equations: Sequence[Equation]):
        self._equations = equations
        self._values: dict[Variable, Any] = {}

    def value(self, atom: Atom) -> Any | None:
        """The value; None if it depends on a tracer from outside the step."""
        if isinstance(atom, Constant):
            return None if jax_internals.is_traced(atom.value) else atom.value
        if atom not in self._values:
            chain = needed(self._equations, [atom])
            given = [a for e in chain for a in e.inputs if isinstance(a, Constant)]
            self._values[atom] = None
            if not any(jax_internals.is_traced(a.value) for a in given):
                with jax.ensure_compile_time_eval():
                    self._values[atom] = evaluate(chain, {})[atom]
        return self._values[atom]


def _apply(equation: Equation, mask_of: _MaskOf, constants: _Constants) -> Sequence[_Mask]:
    """The mask of each output."""
    name, inputs = equation.name, equation.inputs
    if name in _ZERO_PRESERVING_UNARY:
        return [mask_of(inputs[0])]
    if name == "integer_pow":
        return [mask_of(inputs[0]) if equation.params["y"] > 0 else None]
    if name in _ZERO_PRESERVING_BINARY:
        return [_union(mask_of, inputs)]
    if name == "mul":
        known = [mask for mask in map(mask_of, inputs) if mask is not None]
        return [known[0] if len(known) == 1 else known[0] & known[1] if known else None]
    if name == "div":
        return [mask_of(inputs[0])]
    if name == "select_n":
        return [_chosen(inputs, mask_of, constants)]
    if name in _ZERO_PRESERVING_LINEAR:
        return _through_linear(equation, mask_of, constants)
    return [None] * len(equation.outputs)


def _union(mask_of: _MaskOf, atoms: Sequence[Atom]) -> _Mask:
    union = np.zeros((), bool)
    for atom in atoms:
        mask = mask_of(atom)
        if mask is None:
            return None
        union = union | mask
    return union


def _chosen(inputs: Sequence[Atom], mask_of: _MaskOf, constants: _Constants) -> _Mask:
    which, *cases = inputs
    chosen = constants.value(which) if which.role is Role.CONSTANT else None
    if chosen is None:
        return _union(mask_of, cases)
    masks = [np.broadcast_to(True if m is None else m, cases[0].shape) for m in map(mask_of, cases)]
    return np.choose(np.asarray(chosen).astype(int), masks)


def _through_linear(equation: Equation, mask_of: _MaskOf, constants: _Constants) -> Sequence[_Mask]:
    """Applies the operation to the masks of its inputs; index inputs keep their values."""
    masks = [mask_of(atom) if is_inexact(atom) else None for atom in equation.inputs]
    if all(mask is None for mask in masks):
        return [None] * len(equation.outputs)
    values: list[Any] = []
    for atom, mask in zip(equation.inputs, masks):
        if is_inexact(atom):
            ones = np.ones(atom.shape) if mask is None else mask
            values.append(np.asarray(ones, atom.dtype))
        else:
            values.append(constants.value(atom) if atom.role is Role.CONSTANT else None)
    if any(value is None for value in values):
        return [None] * len(equation.outputs)
    with jax.ensure_compile_time_eval():
        results = equation.apply([jnp.asarray(value) for value in values])
        return [np.asarray(result) != 0 for result in results]
