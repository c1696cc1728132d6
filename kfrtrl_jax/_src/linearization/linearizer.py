"""From any cell's step to J and its Kronecker sites, using the other modules of this package.

The step is cut at its pre-activations z_k. Between the cuts lie local relations (`local_jacobians`), of
the new state and of the products' inputs a_k to the old state and to earlier pre-activations; through
the cuts goes the elimination (`elimination`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import (
    Cell,
    Linearization,
    Site,
    SiteGradients,
    SiteJacobian,
    Structure,
)
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.linearization.complex_numbers import (
    joined,
    joined_cotangents,
    real_cotangents,
    real_leaves,
)
from kfrtrl_jax._src.linearization.custom_rules import pullback
from kfrtrl_jax._src.linearization.discovery import discover, follows, parameter_paths
from kfrtrl_jax._src.linearization.elimination import eliminate
from kfrtrl_jax._src.linearization.local_jacobians import LocalJacobians
from kfrtrl_jax._src.linearization.patterns import DenseRelation, normalized
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
from kfrtrl_jax._src.linearization.random_keys import check_raw_keys
from kfrtrl_jax._src.linearization.reach import mask_of, places, reachable
from kfrtrl_jax._src.linearization.sites import SitePlan, plan_sites
from kfrtrl_jax._src.linearization.taps import Taps, make_taps
from kfrtrl_jax._src.linearization.trace import trace
from kfrtrl_jax._src.linearization.zeros import nonzero_masks
from kfrtrl_jax._src.matrices import Banded, Index, Terms
from kfrtrl_jax._src.one_step import output_shapes

Array = jax.Array

# Zeros are not looked for in Jacobians with more entries than this.
_MAX_ENTRIES = 2**28


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
    program = trace(cell.step, params, carry, example_input, follows)
    check_raw_keys(program, carry)
    discovery = discover(program)
    plans = plan_sites(discovery)
    states = list(filter(is_inexact, program.carry))
    results = [atom for atom, v in zip(program.new_carry, program.carry) if v in states]
    local = LocalJacobians(discovery, states, results)

    def one_lane(
        params: Any, carry: Any, x: Any, keep: Array
    ) -> tuple[Linearization, tuple[Array, ...]]:
        variables = (*program.parameters, *program.carry, *program.inputs)
        environment = dict(zip(variables, real_leaves((params, carry, x)), strict=True))
        environment = evaluate((*discovery.prefix, *discovery.equations), environment)
        return eliminate(local, plans, environment, keep)

    def linearize(params: Any, carry: Any, x: Any, keep: Array) -> Linearization:
        # The axis of the lanes stands after that of the terms.
        sites = tuple(SiteJacobian(inputs=0, derivatives=1) for _ in plans)  # type: ignore[arg-type]
        axes = Linearization(jacobian=0, sites=sites, leak=0, keep=0)  # type: ignore[arg-type]
        linearization, weights = jax.vmap(one_lane, in_axes=(None, 0, 0, 0), out_axes=(axes, None))(
            params, carry, x, keep
        )
        jacobian = linearization.jacobian
        products = tuple(
            dataclasses.replace(p, weights=w) for p, w in zip(jacobian.products, weights)
        )
        return linearization._replace(jacobian=dataclasses.replace(jacobian, products=products))

    try:
        shapes, _ = jax.eval_shape(one_lane, params, carry, example_input, jnp.ones(()))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _not_differentiable(local.equations, error) from error
    masks = nonzero_masks(discovery.prefix)
    size = sum(math.prod(v.shape) for v in states)
    entries = size * sum(math.prod(v.shape) for v in local.sources)
    # Past this size nothing is known to be zero, which is never wrong.
    reach = reachable(local, masks) if entries <= _MAX_ENTRIES else {}

    def label(weights: list[Variable]) -> str:
        return " + ".join(parameter_paths(program, discovery.prefix, weights))

    def shape(plan: SitePlan, site: SiteJacobian) -> Site:
        columns = _columns_of(site.derivatives)
        return Site(
            input_size=plan.input_size,
            output_size=plan.output_size,
            label=label(plan.weights()),
            columns=columns,
            derivative_mask=mask_of([plan.reached(reach)]) if columns is None else None,
            weights_mask=mask_of([plan.nonzero(masks)]),
            problem=plan.problem,
            uses=plan.count,
            parts=tuple((number, label(weights)) for number, weights in plan.weights_of_columns()),
        )

    structure = Structure(
        batch_size=batch_size,
        state_size=size,
        sites=tuple(map(shape, plans, shapes.sites)),
        dtype=jnp.result_type(*(v.dtype for v in states)),
        jacobian_mask=mask_of([reach.get(v) for v in states]),
        leaf_sizes=tuple(math.prod(v.shape) for v in states),
        leak_mask=mask_of(list(map(places, shapes.leak.blocks)))
        if entries <= _MAX_ENTRIES
        else None,
        leaf_paths=tuple(
            path
            for v, path in zip(program.carry, _paths_of_parts(carry), strict=True)
            if v in states
        ),
    )

    def gradient(
        params: Any, site_gradients: SiteGradients, live_gradients: Sequence[Array] = ()
    ) -> Any:
        leaves = real_leaves(params)
        floats = [i for i, v in enumerate(program.parameters) if is_inexact(v)]
        pairs = [
            pair for plan, block in zip(plans, site_gradients) for pair in plan.cotangents(block)
        ]
        wanted = [v for v, _ in pairs]
        chain = needed(discovery.prefix, wanted)

        def weights(*values: Array) -> list[Array]:
            environment = dict(zip(program.parameters, leaves))
            environment.update((program.parameters[i], x) for i, x in zip(floats, values))
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

    def flatten(leaves: list[Any]) -> Array:
        parts = [
            leaf.reshape(leaf.shape[0], -1)
            for leaf, v in zip(leaves, program.carry, strict=True)
            if v in states
        ]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    taps = make_taps(program, discovery, plans, carry, output)
    reaching = {path for site in structure.sites for path in site.label.split(" + ")}
    return Linearizer(
        structure,
        linearize,
        gradient,
        lambda carry: flatten(real_leaves(carry)),
        lambda cotangent: flatten(real_cotangents(cotangent)),
        output,
        _output_of(program, output),
        tuple(dict.fromkeys(path for path in program.paths if path not in reaching)),
        taps,
    )


def _paths_of_parts(carry: Any) -> list[str]:
    """The path of each real leaf: the two parts of a complex one have the same."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_flatten_with_path(carry)[0]
        for _ in range(2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1)
    ]


def _columns_of(derivatives: Terms) -> Index | None:
    """The columns of all of a site's D together, [bands, n], if they are few; see `Banded`."""
    banded = [group for group in derivatives.groups if isinstance(group, Banded)]
    if len(banded) < len(derivatives.groups):
        return None
    together = normalized([band for group in banded for band in group.columns.array])
    if isinstance(together, DenseRelation):
        return None
    return Index(np.stack(together)) if together else banded[0].columns


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
