"""Faults that the library once had, put back: what looks for faults must find them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kfrtrl_jax._src import jax_internals, lanes
from kfrtrl_jax._src.linearization import (
    complex_numbers,
    custom_rules,
    patterns,
    random_keys,
    taps,
    trace,
)
from kfrtrl_jax._src.linearization.patterns import normalized, propagate
from kfrtrl_jax._src.linearization.program import Role, Variable
from kfrtrl_jax._src.matrices import banded, composed, dense


class Fault(NamedTuple):
    """What is put in the place of what.

    Attributes:
      patches: (module or class, name, replacement).
      idiom: the cell of `test_idioms.EXACT` that it is wrong for.
    """

    patches: tuple[tuple[Any, str, Callable[..., Any]], ...]
    idiom: str


def _in_all_lanes_at_once(primitive, params):
    return lambda *values: jax_internals.bind(primitive, params, values)


def _through_the_function(equation, relations):
    """The pattern of a function with a derivative rule, read off the function."""
    closed = jax_internals.closed(equation.params["call_jaxpr"])
    arguments = [Variable(a.shape, a.dtype, Role.DATA) for a in equation.inputs]
    equations, outputs = trace.inline_jaxpr(closed, arguments)
    found = propagate(equations, arguments)
    results = []
    for atom in outputs:
        bands = []
        for argument, relation in zip(arguments, relations):
            inner = found.get(atom, {}).get(argument, [])
            if inner is patterns.DENSE and relation:
                bands = patterns.DENSE
                break
            for band in inner if relation else []:
                flat = [r.reshape(-1) for r in relation]
                bands += [np.where(band >= 0, f[np.maximum(band, 0)], -1) for f in flat]
        results.append(bands if bands is patterns.DENSE else normalized(bands))
    return results


def _as_it_prints(eqn, inputs):
    return eqn.primitive.name, repr(eqn.params), tuple(map(trace._identity, inputs))


_whole_product = complex_numbers._product


def _real_part_of_the_product(*args, **kwargs):
    product = _whole_product(*args, **kwargs)
    return product._replace(imaginary=None)


FAULTS = {
    "outputs read nothing but what is tapped": Fault(
        ((taps, "_parameters_among", lambda *_: ()),), "output reads a summand"
    ),
    "patterns of rules read off their functions": Fault(
        (
            (custom_rules, "by_lane", _in_all_lanes_at_once),
            (patterns, "_through_rule", _through_the_function),
        ),
        "rule mixes neighbours",
    ),
    "rules for all lanes at once": Fault(
        ((custom_rules, "by_lane", _in_all_lanes_at_once),), "rule of a constant"
    ),
    "imaginary parts lost": Fault(
        ((complex_numbers, "_product", _real_part_of_the_product),), "complex numbers inside"
    ),
    "zeros multiplied": Fault(
        tuple(
            (module, "chosen", lambda values, keep: values * keep[..., None, None])
            for module in (banded, composed, dense)
        ),
        "infinite derivative at the first state",
    ),
    "branches without guards": Fault(
        ((trace._Inliner, "_guarded", lambda self, atom, meets, context: atom),), "infinite branch"
    ),
    "rules that are no linear map": Fault(
        ((custom_rules, "refuse_nonlinear_rules", lambda _: None),), "clipped"
    ),
    "equal if they print alike": Fault(
        ((trace, "_expression", _as_it_prints),), "loops that print alike"
    ),
    "raw keys as data": Fault(
        tuple((module, "is_raw_key", lambda _: False) for module in (lanes, random_keys)), ""
    ),
}


def put_back(monkeypatch, name):
    """Puts a fault back for the time of a test."""
    for target, attribute, replacement in FAULTS[name].patches:
        monkeypatch.setattr(target, attribute, replacement)
