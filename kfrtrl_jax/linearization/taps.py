"""Steps that take what their pre-activations are off by: gradients without the parameters in the loop.

Reverse differentiation of a scan adds a product a (x) delta to every parameter at every time step. With
the parameters held constant and the loss differentiated by a tap, an array of zeros that is added to
each pre-activation, there are the a and the delta of all time steps instead, and one product for each
site gives the sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kfrtrl_jax.base import Array, SiteGradients
from kfrtrl_jax.linearization.program import (
    Environment,
    Program,
    Role,
    Variable,
    evaluate,
    needed,
    read,
)
from kfrtrl_jax.linearization.sites import Discovery, SitePlan


@dataclasses.dataclass(frozen=True)
class Taps:
    """A cell's step with taps.

    Attributes:
      zeros: what is added where nothing is off, one array for each pre-activation of one lane.
      step: (params, carry, x, taps) -> (carry, output, data), for one lane; data are what the weights
        of each site meet.
      site_gradients: (data [K, B, ...], the loss's derivative by the taps [K, B, ...]) -> for every
        site the sum over steps and lanes, [m, g].
    """

    zeros: tuple[Array, ...]
    step: Callable[[Any, Any, Any, Sequence[Array]], tuple[Any, Any, Sequence[Array]]]
    site_gradients: Callable[[Sequence[Array], Sequence[Array]], SiteGradients]


def make_taps(
    program: Program, discovery: Discovery, plans: Sequence[SitePlan], output: Any
) -> Taps | None:
    """The step with taps, or None where a parameter reaches carry or output by another way.

    Args:
      program: the step.
      discovery: where its parameters enter the new carry.
      plans: the sites.
      output: the step's output, for its tree.
    """
    tapped = [z.variable for z in discovery.pre_activations]
    if discovery.opaque or _read_elsewhere(program, discovery):
        return None
    treedef = jax.tree.structure(output)

    def step(
        params: Any, carry: Any, x: Any, taps: Sequence[Array]
    ) -> tuple[Any, Any, Sequence[Array]]:
        environment = program.environment(params, carry, x)
        environment = evaluate(program.equations, environment, dict(zip(tapped, taps)))
        new = [read(environment, atom) for atom in program.new_carry]
        outputs = [read(environment, atom) for atom in program.output]
        data = tuple(_data(plan, environment) for plan in plans)
        return (
            jax.tree.unflatten(jax.tree.structure(carry), new),
            jax.tree.unflatten(treedef, outputs),
            data,
        )

    def site_gradients(data: Sequence[Array], cotangents: Sequence[Array]) -> SiteGradients:
        by_variable = {
            v: c.reshape(*c.shape[: c.ndim - len(v.shape)], -1) for v, c in zip(tapped, cotangents)
        }
        gradients = []
        for plan, a in zip(plans, data):
            deltas = [by_variable[z.variable] for z in plan.pre_activations]
            delta = deltas[0] if len(deltas) == 1 else jnp.concatenate(deltas, axis=-1)
            if plan.scaling is not None:
                gradients.append(jnp.einsum("kbg,kbg->g", a, delta)[None])
            else:
                gradients.append(jnp.einsum("kbm,kbg->mg", a, delta))
        return tuple(gradients)

    zeros = tuple(jnp.zeros(v.shape, v.dtype) for v in tapped)
    return Taps(zeros, step, site_gradients)


def _read_elsewhere(program: Program, discovery: Discovery) -> bool:
    """Whether the output depends on a parameter through more than the pre-activations."""
    given = [v for e in discovery.equations for v in e.outputs]
    equations = needed(program.equations, program.output, given)
    atoms = [*program.output, *(atom for e in equations for atom in e.inputs)]
    return any(isinstance(atom, Variable) and atom.role is Role.PARAMETER for atom in atoms)


def _data(plan: SitePlan, environment: Environment) -> Array:
    """What a site's weights meet: a, [m], or for element-wise weights the vector that they scale."""
    if plan.scaling is not None:
        vector: Array = plan.scaling.vector(environment[plan.scaling.data])
        return vector
    return plan.input(environment, plan.pre_activations[0].variable.dtype)
