"""A step whose loss is differentiated by its pre-activations: no parameter in the loop.

Reverse differentiation of a scan adds a product a (x) delta to every parameter at every time step. With
the parameters held constant and the loss differentiated by a tap, an array of zeros that is added to
each pre-activation, there are the a and the delta of all time steps instead, and one product for each
site gives the sum.

A parameter that reaches the new carry or the output by another way than these pre-activations is live
there: it is read from a second copy of the parameters, by which the loss is differentiated as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, SiteGradients
from kfrtrl_jax._src.linearization.complex_numbers import joined, real_leaves
from kfrtrl_jax._src.linearization.discovery import Discovery, PreActivation
from kfrtrl_jax._src.linearization.program import (
    Atom,
    Environment,
    Equation,
    Program,
    Role,
    Variable,
    evaluate,
    needed,
    read,
)
from kfrtrl_jax._src.linearization.sites import SitePlan
from kfrtrl_jax._src.linearization.weight_terms import Bias


@dataclasses.dataclass(frozen=True)
class Taps:
    """A cell's step with taps.

    Attributes:
      zeros: what is added where nothing is off, one array for each pre-activation of one lane.
      live: the numbers, among the real leaves of the parameters, of those that are live somewhere.
      step: (params, live leaves, carry, x, taps) -> (carry, output, data), for one lane; data are what
        the weights of each site meet.
      site_gradients: (data [K, B, ...], the loss's derivative by the taps [K, B, ...]) -> for every
        site the sum over steps and lanes, [m, g].
    """

    zeros: tuple[Array, ...]
    live: tuple[int, ...]
    step: Callable[..., tuple[Any, Any, Sequence[Array]]]
    site_gradients: Callable[[Sequence[Array], Sequence[Array]], SiteGradients]

    def live_leaves(self, params: Any) -> list[Array]:
        """The leaves of the parameters that are live somewhere."""
        leaves = real_leaves(params)
        return [leaves[i] for i in self.live]


def make_taps(
    program: Program, discovery: Discovery, plans: Sequence[SitePlan], carry: Any, output: Any
) -> Taps:
    """The step with taps.

    Args:
      program: the step.
      discovery: where its parameters enter the new carry.
      plans: the sites.
      carry: the carry, for its tree and types.
      output: the step's output, for its tree and types.
    """
    tapped = [z.variable for z in discovery.pre_activations]
    reads = {z.variable: _reads(z) for z in discovery.pre_activations}
    given = [*program.parameters, *_parameter_only(program.equations)]
    # Each pre-activation from what its terms read, apart from whatever else reads the same sums.
    sums = {z: needed(program.equations, [z], [*read_, *given]) for z, read_ in reads.items()}
    results = [*program.new_carry, *program.output]
    body = needed(program.equations, [*results, *(a for r in reads.values() for a in r)], tapped)
    live = _parameters_behind(program, body, results)
    place = {v: i for i, e in enumerate(program.equations) for v in e.outputs}
    schedule: list[Equation | Variable] = [*body, *tapped]
    schedule.sort(key=lambda s: place[s if isinstance(s, Variable) else s.outputs[0]])
    prefix = [e for e in program.equations if all(v.role is not Role.DATA for v in e.outputs)]
    variables = (*program.parameters, *program.carry, *program.inputs)

    def step(
        params: Any, live_leaves: Sequence[Array], start: Any, x: Any, taps: Sequence[Array]
    ) -> tuple[Any, Any, Sequence[Array]]:
        leaves, others = real_leaves(params), real_leaves((start, x))
        held = evaluate(prefix, dict(zip(variables, [*leaves, *others], strict=True)))
        for i, leaf in zip(live, live_leaves):
            leaves[i] = leaf
        environment: Environment = dict(zip(variables, [*leaves, *others])) if live else held
        tap_of = dict(zip(tapped, taps))
        for item in schedule:
            if isinstance(item, Variable):
                held = {**held, **{v: environment[v] for v in reads[item]}}
                # Sums that several pre-activations are cut out of are made once.
                held = evaluate(sums[item], held)
                environment = {**environment, item: held[item] + tap_of[item]}
            else:
                environment = evaluate([item], environment)
        new = [read(environment, atom) for atom in program.new_carry]
        outputs = [read(environment, atom) for atom in program.output]
        data = tuple(plan.met(environment) for plan in plans)
        return joined(new, carry), joined(outputs, output), data

    def site_gradients(data: Sequence[Array], cotangents: Sequence[Array]) -> SiteGradients:
        by_variable = {
            v: c.reshape(*c.shape[: c.ndim - len(v.shape)], -1) for v, c in zip(tapped, cotangents)
        }
        return tuple(plan.gradient(met, by_variable) for plan, met in zip(plans, data))

    zeros = tuple(jnp.zeros(v.shape, v.dtype) for v in tapped)
    return Taps(zeros, live, step, site_gradients)


def _reads(z: PreActivation) -> list[Variable]:
    """The data that the terms of a pre-activation read."""
    return list(dict.fromkeys(t.data for t in z.terms if not isinstance(t, Bias)))


def _parameter_only(equations: Sequence[Equation]) -> list[Variable]:
    return [v for e in equations for v in e.outputs if v.role is not Role.DATA]


def _parameters_behind(
    program: Program, body: Sequence[Equation], results: Sequence[Atom]
) -> tuple[int, ...]:
    """The numbers of the float parameters that equations, or results themselves, read."""
    behind = {atom for e in body for atom in e.inputs} | set(results)
    return tuple(
        i
        for i, v in enumerate(program.parameters)
        if v in behind and jnp.issubdtype(v.dtype, jnp.inexact)
    )
