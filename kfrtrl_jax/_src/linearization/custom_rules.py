"""Derivative rules written by a cell's author (`jax.custom_vjp`, `jax.custom_jvp`).

The derivatives of such a function follow its rule, not the function itself: a surrogate gradient is not
zero where the function is constant, and may mix elements that the function keeps apart. A rule need not
even be a linear map (one that clips gradients is not), in which case there is no Jacobian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.linearization.program import is_inexact

# Operations whose every output is linear in all inputs together.
_LINEAR = frozenset(
    """add add_any broadcast_in_dim concatenate conj convert_element_type copy copy_p cumsum expand_dims
    imag neg pad psum real complex reduce_sum reshape rev slice split squeeze stop_gradient sub
    transpose""".split()
)
# Linear in either input while the other is fixed.
_BILINEAR = frozenset("conv_general_dilated dot_general mul".split())
# Linear in the first input while the others are fixed.
_LINEAR_IN_FIRST = frozenset("div dynamic_slice gather".split())
# Sizes of the random cotangents that test a rule whose form does not show it to be linear.
_SCALES = (1e-4, 1.0, 1e4)


def pullback(primitive: Any, params: dict[str, Any], avals: Sequence[Any]) -> Any:
    """The rule as a closed jaxpr: (inputs, cotangents of the outputs) -> cotangents of the inputs.

    Only float inputs and outputs have cotangents, which come after all inputs.

    Args:
      primitive: of the equation.
      params: of the equation.
      avals: shapes and types of its inputs.

    Raises:
      Exception: whatever JAX raises if the rule cannot be used in reverse mode.
    """
    inexact = [i for i, a in enumerate(avals) if is_inexact(a)]

    def forward(floats: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        values = list(values)
        for i, value in zip(inexact, floats):
            values[i] = value
        results = jax_internals.bind(primitive, params, values)
        return [r for r in results if is_inexact(r)]

    def backward(values: Sequence[Any], cotangents: Sequence[Any]) -> Any:
        _, pull = jax.vjp(lambda *floats: forward(floats, values), *(values[i] for i in inexact))
        return pull(list(cotangents))

    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
    outputs = jax.eval_shape(lambda *v: forward([v[i] for i in inexact], v), *shapes)
    return jax.make_jaxpr(backward)(shapes, outputs)


def by_lane(primitive: Any, params: dict[str, Any]) -> Any:
    """A function with its rule as its pullback, wrapped such that `jax.vmap` keeps the lanes apart.

    If the function's value is the same in all lanes, as that of a constant, `jax.vmap` computes it once
    and sums the cotangents of all lanes before they reach the rule. Here the value is made to depend on
    the inputs.
    """

    @jax.custom_vjp
    def function(*values: Any) -> list[Any]:
        floats = [v.reshape(-1)[0] for v in values if is_inexact(v) and v.size]
        unequal = jnp.any(jnp.stack([v != v for v in floats])) if floats else jnp.asarray(False)
        return [jnp.where(unequal, r, r) for r in jax_internals.bind(primitive, params, values)]

    def forward(*values: Any) -> tuple[list[Any], Any]:
        return function(*values), values

    def backward(values: Sequence[Any], cotangents: Sequence[Any]) -> tuple[Any, ...]:
        places = [i for i, v in enumerate(values) if is_inexact(v)]

        def of_floats(*floats: Any) -> list[Any]:
            whole = list(values)
            for i, value in zip(places, floats):
                whole[i] = value
            results = jax_internals.bind(primitive, params, whole)
            return [r for r in results if is_inexact(r)]

        _, pull = jax.vjp(of_floats, *(values[i] for i in places))
        found: list[Any] = [None] * len(values)
        for i, cotangent in zip(places, pull([c for c in cotangents if is_inexact(c)])):
            found[i] = cotangent
        return tuple(found)

    function.defvjp(forward, backward)
    return function


def refuse_nonlinear_rules(jaxpr: Any) -> None:
    """Refuses a step with a derivative rule, at any depth, that is not a linear map.

    Raises:
      UnsupportedCellError: naming the operation and the line.
    """
    for eqn in jax_internals.all_equations(jaxpr):
        if eqn.primitive.name not in jax_internals.CUSTOM_RULES:
            continue
        avals = [v.aval for v in eqn.invars]
        if not any(map(is_inexact, avals)):
            continue
        try:
            rule = pullback(eqn.primitive, eqn.params, avals)
        except Exception:
            # It may never be differentiated; if it is, JAX raises then.
            continue
        if not _is_linear(rule, len(avals)):
            where = jax_internals.origin(eqn.primitive, eqn.source_info)
            raise UnsupportedCellError(
                f"{where}: its derivative rule is not linear in the gradient "
                f"(such as one that clips or normalizes it), so there is no Jacobian; use a rule that "
                f"multiplies the gradient, and clip gradients in the optimizer"
            )


def _is_linear(rule: Any, num_values: int) -> bool:
    """Whether a rule is a linear map of the cotangents, by its form or by random tests."""
    given = [False] * num_values + [True] * (len(rule.jaxpr.invars) - num_values)
    return _linear_by_form(rule.jaxpr, given) or _linear_where_tried(rule, num_values)


def _linear_by_form(jaxpr: Any, depends: Sequence[bool]) -> bool:
    """Whether the outputs of an open jaxpr are linear in the marked inputs, equation by equation."""
    linear = {var for var, depend in zip(jaxpr.invars, depends) if depend}
    zero: set[Any] = set()  # always 0, so that adding one to a linear value keeps it linear

    def is_zero(var: Any) -> bool:
        if isinstance(var, jax_internals.Literal):
            return bool(np.all(np.asarray(var.val) == 0))
        return var in zero

    def is_linear(var: Any) -> bool:
        return not isinstance(var, jax_internals.Literal) and var in linear

    for eqn in jaxpr.eqns:
        name, flags = eqn.primitive.name, [is_linear(v) for v in eqn.invars]
        if not any(flags):
            if name in _LINEAR and all(is_zero(v) for v in eqn.invars):
                zero.update(eqn.outvars)
            continue
        if name in jax_internals.TRANSPARENT:
            inner = jax_internals.wrapped_jaxpr(eqn.params).jaxpr
            if not _linear_by_form(inner, flags):
                return False
        elif name in _LINEAR:
            if not all(flag or is_zero(v) for flag, v in zip(flags, eqn.invars)):
                return False
        elif name in _BILINEAR:
            if sum(flags) != 1:
                return False
        elif name in _LINEAR_IN_FIRST:
            if any(flags[1:]):
                return False
        elif name == "select_n":
            cases = zip(flags[1:], eqn.invars[1:])
            if flags[0] or not all(flag or is_zero(v) for flag, v in cases):
                return False
        else:
            return False
        linear.update(eqn.outvars)
    return all(is_linear(v) or is_zero(v) for v in jaxpr.outvars if is_inexact(v.aval))


def _linear_where_tried(rule: Any, num_values: int) -> bool:
    """Whether a rule is additive and homogeneous at random cotangents of several sizes."""
    if any(map(jax_internals.is_traced, rule.consts)):
        return False
    function = jax_internals.as_function(rule)
    generator = np.random.default_rng(0)

    def random(var: Any) -> Any:
        aval = var.aval
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), aval.shape)
        if not is_inexact(aval):
            return jnp.zeros(aval.shape, aval.dtype)
        values = generator.normal(size=aval.shape)
        if jnp.issubdtype(aval.dtype, jnp.complexfloating):
            values = values + 1j * generator.normal(size=aval.shape)
        return jnp.asarray(values, aval.dtype)

    with jax.ensure_compile_time_eval():
        values = [random(v) for v in rule.jaxpr.invars[:num_values]]
        for scale in _SCALES:
            first, second = (
                [scale * random(v) for v in rule.jaxpr.invars[num_values:]] for _ in range(2)
            )
            both = [3 * a - b for a, b in zip(first, second)]
            ways = [function(*values, *c) for c in (first, second, both)]
            for a, b, c in zip(*ways):
                if not is_inexact(c):
                    continue
                size = np.abs(np.asarray(a)).max(initial=0) + np.abs(np.asarray(b)).max(initial=0)
                tolerance = 100 * float(jnp.finfo(c.dtype).eps) * size
                if not np.allclose(3 * a - b, c, rtol=0, atol=tolerance, equal_nan=True):
                    return False
    return True
