"""A step whose loss is differentiated by its pre-activations: the loop contains no parameters.

Reverse differentiation of a scan adds a product a (x) delta to every parameter at every time step. With
the parameters held constant and the loss differentiated by a tap, an array of zeros that is added to
each pre-activation, there are the a and the delta of all time steps instead, and one product for each
site gives the sum.

A parameter that reaches the new carry or the output other than through these pre-activations is live
there: it is read from a second copy of the parameters, by which the loss is differentiated as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, SiteGradients
from kfrtrl_jax._src.linearization.complex_numbers import joined, real_leaves
from kfrtrl_jax._src.linearization.discovery import Discovery, InnerLoop
from kfrtrl_jax._src.linearization.program import (
    Atom,
    Environment,
    Equation,
    Role,
    TracedStep,
    Variable,
    evaluate,
    is_inexact,
    needed,
    read,
)
from kfrtrl_jax._src.linearization.sites import SitePlan


@dataclasses.dataclass(frozen=True)
class Taps:
    """A cell's step with taps.

    Attributes:
      zeros: taps of value 0, one array for each pre-activation of one lane.
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
    program: TracedStep, discovery: Discovery, plans: Sequence[SitePlan], carry: Any, output: Any
) -> Taps:
    """The step with taps.

    Args:
      program: the step.
      discovery: where its parameters enter the new carry.
      plans: the sites.
      carry: the carry, for its tree and types.
      output: the step's output, for its tree and types.
    """
    results = [*program.new_carry, *program.output]
    schedule = _Schedule(discovery, program.equations, results, program.parameters)
    live = _parameters_among(schedule.reads, program)
    prefix = [e for e in program.equations if all(v.role is not Role.DATA for v in e.outputs)]
    variables = (*program.parameters, *program.carry, *program.inputs)
    tapped = discovery.tapped()

    def step(
        params: Any, live_leaves: Sequence[Array], start: Any, x: Any, taps: Sequence[Array]
    ) -> tuple[Any, Any, Sequence[Array]]:
        leaves, others = real_leaves(params), real_leaves((start, x))
        held = evaluate(prefix, dict(zip(variables, [*leaves, *others], strict=True)))
        for i, leaf in zip(live, live_leaves):
            leaves[i] = leaf
        environment: Environment = dict(zip(variables, [*leaves, *others])) if live else held
        tap_of = {v: tap for (v, _), tap in zip(tapped, taps)}
        environment = schedule.run(environment, held, tap_of)
        new = [read(environment, atom) for atom in program.new_carry]
        outputs = [read(environment, atom) for atom in program.output]
        data = tuple(plan.met(environment) for plan in plans)
        return joined(new, carry), joined(outputs, output), data

    def site_gradients(data: Sequence[Array], cotangents: Sequence[Array]) -> SiteGradients:
        by_variable = {
            v: c.reshape(*c.shape[: c.ndim - len(v.shape)], -1)
            for (v, _), c in zip(tapped, cotangents)
        }
        return tuple(plan.gradient(met, by_variable) for plan, met in zip(plans, data))

    zeros = tuple(jnp.zeros((*iterations, *v.shape), v.dtype) for v, iterations in tapped)
    return Taps(zeros, live, step, site_gradients)


def _parameters_among(values: Collection[Variable], program: TracedStep) -> tuple[int, ...]:
    """The numbers of the float parameters among some values."""
    return tuple(i for i, v in enumerate(program.parameters) if v in values and is_inexact(v))


class _Schedule:
    """Equations with a tap at every pre-activation, and at those inside of loops.

    Attributes:
      reads: the values without data that are read by another way than by pre-activations.
    """

    def __init__(
        self,
        discovery: Discovery,
        equations: Sequence[Equation],
        results: Sequence[Atom],
        parameters: Sequence[Variable] = (),
    ) -> None:
        """The order in which they are evaluated.

        Args:
          discovery: where parameters meet data.
          equations: all that there are.
          results: what is wanted.
          parameters: what is known at the start.
        """
        self._met = {z.variable: z.met for z in discovery.pre_activations}
        self._loops = {inner.loop.outputs[0]: _TappedLoop(inner) for inner in discovery.loops}
        equations = [
            self._loops[e.outputs[0]].equation if e.outputs[0] in self._loops else e
            for e in equations
        ]
        of_no_data = [v for e in equations for v in e.outputs if v.role is not Role.DATA]
        given = [*parameters, *of_no_data]
        # Each pre-activation from what its terms read, apart from whatever else reads the same sums.
        self._sums = {z: needed(equations, [z], [*met, *given]) for z, met in self._met.items()}
        wanted = [*results, *(v for met in self._met.values() for v in met)]
        body = needed(equations, wanted, list(self._met))
        place = {v: i for i, e in enumerate(equations) for v in e.outputs}
        self._items: list[Equation | Variable] = [*body, *self._met]
        self._items.sort(key=lambda s: place[s if isinstance(s, Variable) else s.outputs[0]])
        read_ = {*results, *(atom for e in body for atom in e.inputs)}
        self.reads = {a for a in read_ if isinstance(a, Variable) and a.role is not Role.DATA}

    def run(self, environment: Environment, held: Environment, taps: Environment) -> Environment:
        """The environment with all results, and what the uses of weights read.

        Args:
          environment: the values that are known, parameters live.
          held: the same, parameters constant, with all that is made of them alone.
          taps: what is added to each pre-activation.
        """
        for item in self._items:
            if isinstance(item, Variable):
                held = {**held, **{v: environment[v] for v in self._met[item]}}
                # Sums that several pre-activations are cut out of are made once.
                held = evaluate(self._sums[item], held)
                environment = {**environment, item: held[item] + taps[item]}
            elif item.outputs[0] in self._loops:
                environment = self._loops[item.outputs[0]].run(environment, held, taps)
            else:
                environment = evaluate([item], environment)
        return environment


class _TappedLoop:
    """A loop with taps at the pre-activations inside.

    Attributes:
      equation: the loop, without the inputs that only pre-activations read.
    """

    def __init__(self, inner: InnerLoop) -> None:
        loop, body = inner.loop, inner.loop.body
        results = [*body.new_carried, *body.stacked]
        self._loop = loop
        self._schedule = _Schedule(inner.discovery, body.equations, results, body.captured)
        self._live = [v for v in body.captured if v in self._schedule.reads]
        self._tapped = [v for v, _ in inner.discovery.tapped()]
        self._met = inner.discovery.met()
        self.equation: Equation = dataclasses.replace(loop, inputs=(*loop.data_inputs, *self._live))

    def run(self, environment: Environment, held: Environment, taps: Environment) -> Environment:
        """The environment with the outputs, and what the uses of weights read, by iteration."""
        captured = {v: held[v] for v in self._loop.body.captured}
        live = captured | {v: environment[v] for v in self._live}

        def iteration(values: Environment, own: list[Array]) -> tuple[Environment, list[Array]]:
            values = self._schedule.run(
                values, {**values, **captured}, dict(zip(self._tapped, own))
            )
            return values, [values[v] for v in self._met]

        outputs, met = self._loop.run(environment, live, iteration, [taps[v] for v in self._tapped])
        made = dict(zip(self._loop.outputs, outputs))
        return {**environment, **made, **dict(zip(self._met, met))}
