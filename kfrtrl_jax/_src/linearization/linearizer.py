"""From any cell's step to J and its Kronecker sites, using the other modules of this package.

The step is cut at its pre-activations z_k. Between the cuts lie local relations (`local_jacobians`), of
the new state and of the products' inputs a_k to the old state and to earlier pre-activations; through
the cuts goes the elimination (`elimination`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Cell, Linearization, SiteGradients, SiteJacobian, Structure
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.linearization.complex_numbers import (
    joined,
    joined_cotangents,
    real_cotangents,
    real_leaves,
)
from kfrtrl_jax._src.linearization.custom_rules import pullback
from kfrtrl_jax._src.linearization.cut_step import CutStep, read_step, structure_of
from kfrtrl_jax._src.linearization.elimination import eliminate
from kfrtrl_jax._src.linearization.program import (
    Environment,
    Equation,
    TracedStep,
    Variable,
    evaluate,
    is_inexact,
    needed,
    origin,
    read,
)
from kfrtrl_jax._src.linearization.taps import Taps, make_taps
from kfrtrl_jax._src.one_step import output_shapes

Array = jax.Array
# (params, carry, x, keep) of one lane -> (its linearization, the weights of the products in J).
_OneLane = Callable[[Any, Any, Any, Array], tuple[Linearization, tuple[Array, ...]]]


@dataclasses.dataclass(frozen=True)
class Linearizer:
    """A cell's step, ready to be linearized at any point.

    Attributes:
      structure: what estimators need to know of it.
      linearize: (params, carry [B, ...], x [B, ...], keep [B]) -> Linearization; a lane with keep 0
        starts anew, and has J = 0.
      gradient: (params, site gradients, gradients by the taps' live leaves, if any) -> the gradient as
        a pytree like params, as `jax.grad` has it: for a complex z = x + iy it is d/dx - i d/dy.
        Parameters that are no floats have None.
      flatten: a pytree like the carry, [B, ...] -> [B, n]; leaves that are no floats are left out. A
        complex leaf counts twice: its real parts, then its imaginary ones.
      flatten_cotangent: a cotangent of the carry, as JAX has it, -> the derivatives by `flatten`,
        [B, n].
      output: the shapes and types of one lane's output.
      output_of: one lane's new carry -> its output; None where the output needs more than that.
      direct: the paths of parameters that never reach the new carry; their gradient is the direct one.
      taps: the step with taps, by which losses are differentiated.
    """

    structure: Structure
    linearize: Callable[[Any, Any, Any, Array], Linearization]
    gradient: Callable[..., Any]
    flatten: Callable[[Any], Array]
    flatten_cotangent: Callable[[Any], Array]
    output: Any
    output_of: Callable[[Any], Any] | None
    direct: tuple[str, ...]
    taps: Taps


def make_linearizer(cell: Cell, example_input: Any, batch_size: int) -> Linearizer:
    """Reads the cell's step.

    Args:
      cell: written for one lane.
      example_input: one lane's input; only its shape and type matter.
      batch_size: B.

    Raises:
      ValueError: if the step fails on the input of one lane, or does not return (carry, output) with a
        carry like the one that it was given.
      UnsupportedCellError: if the cell has no carry of floats, has an integer leaf in it that looks
        like a PRNG key and is not one, or the reverse, or holds an operation that JAX cannot
        differentiate backward or a derivative rule that is no linear map.
    """
    params = jax.eval_shape(cell.init, jax.random.key(0))
    carry = jax.eval_shape(cell.initial_carry)
    _check_carry(carry)
    output = output_shapes(cell, params, carry, example_input)
    step = read_step(cell, params, carry, example_input)
    # Traced once for all programs in which the step is linearized, and a part of each.
    one_lane = jax.jit(functools.partial(_one_lane, step), inline=True)
    shapes = _shapes(step, one_lane, params, carry, example_input)
    structure = structure_of(step, shapes, batch_size, carry)
    taps = make_taps(step.program, step.discovery, step.plans, carry, output)
    return Linearizer(
        structure,
        functools.partial(_linearize, step, one_lane),
        functools.partial(_gradient, step, taps),
        lambda carry: _flat(step, real_leaves(carry)),
        lambda cotangent: _flat(step, real_cotangents(cotangent)),
        output,
        _output_of(step.program, output),
        _direct(step.program, structure),
        taps,
    )


def _linearize(
    step: CutStep, one_lane: _OneLane, params: Any, carry: Any, x: Any, keep: Array
) -> Linearization:
    """Of all lanes; the axis of the lanes stands after that of the terms."""
    sites = tuple(SiteJacobian(inputs=0, derivatives=1) for _ in step.plans)  # type: ignore[arg-type]
    axes = Linearization(jacobian=0, sites=sites, leak=0, keep=0)  # type: ignore[arg-type]
    all_lanes = jax.vmap(one_lane, in_axes=(None, 0, 0, 0), out_axes=(axes, None))
    linearization, weights = all_lanes(params, carry, x, keep)
    jacobian = linearization.jacobian
    products = tuple(dataclasses.replace(p, weights=w) for p, w in zip(jacobian.products, weights))
    return linearization._replace(jacobian=dataclasses.replace(jacobian, products=products))


def _one_lane(
    step: CutStep, params: Any, carry: Any, x: Any, keep: Array
) -> tuple[Linearization, tuple[Array, ...]]:
    """The linearization, and the weights of the products in J, which lanes share."""
    program = step.program
    variables = (*program.parameters, *program.carry, *program.inputs)
    environment = dict(zip(variables, real_leaves((params, carry, x)), strict=True))
    equations = (*step.discovery.prefix, *step.discovery.equations)
    return eliminate(step.local, step.plans, evaluate(equations, environment), keep)


def _shapes(step: CutStep, one_lane: _OneLane, params: Any, carry: Any, example_input: Any) -> Any:
    """A `Linearization` of one lane, by shape.

    Raises:
      UnsupportedCellError: naming the operation that JAX cannot differentiate backward.
    """
    keep = jax.ShapeDtypeStruct((), jnp.result_type(*(v.dtype for v in step.states)))
    try:
        return jax.eval_shape(one_lane, params, carry, example_input, keep)[0]
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _not_differentiable(step.local.equations, error) from error


def _gradient(
    step: CutStep,
    taps: Taps,
    params: Any,
    site_gradients: SiteGradients,
    live_gradients: Sequence[Array] = (),
) -> Any:
    """From the sites' gradients to the parameters', back through what makes weights of parameters."""
    parameters, prefix = step.program.parameters, step.discovery.prefix
    leaves = real_leaves(params)
    floats = [i for i, v in enumerate(parameters) if is_inexact(v)]
    pairs = [
        pair for plan, block in zip(step.plans, site_gradients) for pair in plan.cotangents(block)
    ]
    wanted = [v for v, _ in pairs]
    chain = needed(prefix, wanted)

    def weights(*values: Array) -> list[Array]:
        environment = dict(zip(parameters, leaves))
        environment.update((parameters[i], x) for i, x in zip(floats, values))
        environment = evaluate(chain, environment)
        return [environment[v] for v in wanted]

    values, pullback = jax.vjp(weights, *(leaves[i] for i in floats))
    found: list[Any] = [None] * len(leaves)
    cotangents = pullback([c.astype(v.dtype) for (_, c), v in zip(pairs, values)])
    for i, cotangent in zip(floats, cotangents):
        found[i] = cotangent
    for i, live in zip(taps.live, live_gradients):
        found[i] = found[i] + live
    return joined_cotangents(found, params)


def _flat(step: CutStep, leaves: Sequence[Array]) -> Array:
    """The leaves of the carry that are states, [B, ...] each, as [B, n]."""
    parts = [
        leaf.reshape(leaf.shape[0], -1)
        for leaf, v in zip(leaves, step.program.carry, strict=True)
        if v in step.states
    ]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _direct(program: TracedStep, structure: Structure) -> tuple[str, ...]:
    """The paths of the parameters that are of no site."""
    reaching = {path for site in structure.sites for path in site.label.split(" + ")}
    return tuple(dict.fromkeys(path for path in program.paths if path not in reaching))


def _not_differentiable(equations: Sequence[Equation], error: Exception) -> Exception:
    """The refusal of the operation that JAX cannot differentiate backward; the error if it is none."""
    for equation in equations:
        try:
            pullback(equation.primitive, equation.params, equation.inputs)
        except Exception as cause:
            first = str(cause).strip().splitlines()[0]
            return UnsupportedCellError(
                f"{origin(equation)} has no reverse-mode derivative: {first}; use "
                f"another operation, or give it one by jax.custom_vjp"
            )
    return error


def _check_carry(carry: Any) -> None:
    if not any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(carry)):
        raise UnsupportedCellError(
            "carry: it holds no floats, so there is no state to have influence"
        )


def _output_of(program: TracedStep, output: Any) -> Callable[[Any], Any] | None:
    """The output as a function of the new carry, if it is one."""
    new_carry = [atom for atom in program.new_carry if isinstance(atom, Variable)]
    equations = needed(program.equations, program.output, new_carry)
    made = {v for e in equations for v in e.outputs}
    for atom in (*program.output, *(atom for e in equations for atom in e.inputs)):
        if isinstance(atom, Variable) and atom not in made and atom not in new_carry:
            return None

    def output_of(carry: Any) -> Any:
        environment: Environment = {
            atom: leaf
            for atom, leaf in zip(program.new_carry, real_leaves(carry), strict=True)
            if isinstance(atom, Variable)
        }
        environment = evaluate(equations, environment)
        return joined([read(environment, a) for a in program.output], output)

    return output_of


__all__ = ["Linearizer", "make_linearizer"]
