"""Which entries of a local Jacobian can be non-zero, found without computing it.

Element-wise operations keep the place of an element. Slices, reshapes, concatenations and the like move
it; applying them to an array of indices shows where each element came from. Operations without a rule
here count as dense, which costs time but is never wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax._src.linearization.custom_rules import pullback
from kfrtrl_jax._src.linearization.program import Atom, Equation, Role, Variable, is_inexact
from kfrtrl_jax._src.linearization.trace import inline_jaxpr

# A pattern with more entries per row is handled as a dense matrix.
MAX_BANDS = 8

_ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt clamp
    complex conj convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2
    expm1 floor ceil round ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min
    mul name ne neg nextafter not or pow real reduce_precision rem rsqrt select_n sign sin sinh sqrt
    square stop_gradient sub tan tanh xor""".split()
)
MOVES_ONE = frozenset(
    "broadcast_in_dim expand_dims reshape rev slice squeeze transpose copy".split()
)
MOVES = MOVES_ONE | {"concatenate", "split"}


class DenseRelation:
    """Every element may depend on every element of the source."""


DENSE = DenseRelation()

# For one source: a list of index arrays shaped like the value, each entry the index of the source
# element that the value's element depends on (-1: none); or DENSE.
Relation = list[np.ndarray] | DenseRelation
Pattern = dict[Variable, Relation]


def propagate(
    equations: Iterable[Equation], sources: Sequence[Variable]
) -> dict[Variable, Pattern]:
    """For every variable, which elements of which sources each of its elements depends on.

    Args:
      equations: in order; those whose outputs are all sources are skipped.
      sources: variables that count as independent: each depends on itself alone.
    """
    patterns: dict[Variable, Pattern] = {
        v: {v: [np.arange(int(np.prod(v.shape))).reshape(v.shape)]} for v in sources
    }
    for equation in equations:
        if all(v in patterns for v in equation.outputs):
            continue
        inputs = [_pattern(patterns, atom) for atom in equation.inputs]
        reached = list(dict.fromkeys(source for pattern in inputs for source in pattern))
        results: list[Pattern] = [{} for _ in equation.outputs]
        for source in reached:
            relations = _apply(equation, [pattern.get(source, []) for pattern in inputs])
            for result, variable, relation in zip(results, equation.outputs, relations):
                if is_inexact(variable):
                    normal = normalized(relation)
                    if normal is DENSE or normal:
                        result[source] = normal
        patterns.update(
            (variable, result)
            for variable, result in zip(equation.outputs, results)
            if variable not in patterns
        )
    return patterns


def copies(
    equations: Iterable[Equation], sources: Sequence[Variable], patterns: dict[Variable, Pattern]
) -> dict[Variable, frozenset[Variable]]:
    """For every variable, the sources whose elements it holds unchanged wherever it depends on them.

    The derivative by such a source is 1 at each entry of its pattern.

    Args:
      equations: in order.
      sources: as in `propagate`.
      patterns: the result of `propagate`.
    """
    unchanged = {v: frozenset([v]) for v in sources}
    for equation in equations:
        if equation.name not in MOVES:
            continue
        for variable in equation.outputs:
            if variable not in unchanged:
                unchanged[variable] = frozenset(
                    source
                    for source in patterns.get(variable, {})
                    if all(
                        source in unchanged.get(atom, ())
                        for atom in equation.inputs
                        if isinstance(atom, Variable) and source in patterns.get(atom, {})
                    )
                )
    return unchanged


def _pattern(patterns: dict[Variable, Pattern], atom: Atom) -> Pattern:
    return patterns.get(atom, {}) if isinstance(atom, Variable) else {}


def _apply(equation: Equation, relations: Sequence[Relation]) -> list[Relation]:
    """The relation of each output to one source, from those of the inputs."""
    everywhere: list[Relation] = [DENSE] * len(equation.outputs)
    if any(relation is DENSE for relation in relations):
        return everywhere
    bands = [relation for relation in relations if isinstance(relation, list)]
    name, shape = equation.name, equation.outputs[0].shape
    if name in _ELEMENTWISE:
        return [[np.broadcast_to(band, shape) for relation in bands for band in relation]]
    if name in MOVES_ONE and not any(bands[1:]):
        return [[move(equation, [band])[0] for band in bands[0]]]
    if name == "split":
        moved = [move(equation, [band]) for band in bands[0]]
        return [list(pieces) for pieces in zip(*moved)]
    if name == "concatenate":
        depth = max(len(relation) for relation in bands)
        absent = [np.full(atom.shape, -1) for atom in equation.inputs]
        return [
            [
                move(equation, [r[i] if i < len(r) else a for r, a in zip(bands, absent)])[0]
                for i in range(depth)
            ]
        ]
    if name == "pad":
        outside = np.full(equation.inputs[1].shape, -1)
        if not bands[1]:
            return [[move(equation, [band, outside])[0] for band in bands[0]]]
        return everywhere
    if name == "optimization_barrier":
        return [list(relation) for relation in bands]
    if name in jax_internals.CUSTOM_RULES:
        return _through_rule(equation, bands)
    return everywhere


def _through_rule(equation: Equation, relations: Sequence[list[np.ndarray]]) -> list[Relation]:
    """The relation of each output to one source, through a function with a custom derivative rule.

    The derivative follows the rule, whatever the function computes: the relation is that of the inputs'
    cotangents to the outputs' cotangents.
    """
    everywhere: list[Relation] = [DENSE] * len(equation.outputs)
    try:
        rule = pullback(equation.primitive, equation.params, equation.inputs)
    except Exception:
        return everywhere  # if it is differentiated, JAX raises and says why it has no derivative
    arguments = [Variable(tuple(v.aval.shape), v.aval.dtype, Role.DATA) for v in rule.jaxpr.invars]
    equations, results = inline_jaxpr(rule, arguments)
    cotangents = arguments[len(equation.inputs) :]
    patterns = propagate(equations, cotangents)
    inexact = [i for i, a in enumerate(equation.inputs) if is_inexact(a)]
    floats = iter(cotangents)
    outputs: list[Relation] = []
    for output in equation.outputs:
        bands: list[np.ndarray] = []
        cotangent = next(floats) if is_inexact(output) else None
        for i, result in zip(inexact, results):
            if cotangent is None or not relations[i]:
                continue
            backward = _pattern(patterns, result).get(cotangent, [])
            if isinstance(backward, DenseRelation):
                bands = []
                outputs.append(DENSE)
                break
            for band in backward:
                places = _inverted(band, output.shape)
                bands += [
                    np.where(places >= 0, relation.reshape(-1)[places], -1)
                    for relation in relations[i]
                ]
        else:
            outputs.append(bands)
    return outputs


def _inverted(band: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The place in the band of each element of an array of this shape; each occurs at most once."""
    places = np.full(int(np.prod(shape)), -1)
    flat = band.reshape(-1)
    present = np.flatnonzero(flat >= 0)
    places[flat[present]] = present
    return places.reshape(shape)


def move(equation: Equation, indices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Applies an operation that only moves elements to arrays of indices."""
    with jax.ensure_compile_time_eval():
        values = [jnp.asarray(index, jnp.int32) for index in indices]
        return [np.asarray(result) for result in equation.apply(values)]


def normalized(relation: Relation) -> Relation:
    """The relation as bands without repeated entries, each column at most once per band.

    DENSE if it needs more than MAX_BANDS.
    """
    if isinstance(relation, DenseRelation):
        return DENSE
    bands: list[np.ndarray] = []
    for band in relation:
        if not np.any(band >= 0) or any(np.array_equal(band, other) for other in bands):
            continue
        fresh = band
        for other in bands:
            fresh = np.where(fresh == other, -1, fresh)
        for injective in _injective(fresh):
            bands.append(injective)
            if len(bands) > MAX_BANDS:
                return DENSE
    return bands


def _injective(band: np.ndarray) -> Iterable[np.ndarray]:
    """Splits a band into parts that contain each column at most once."""
    rest = band.reshape(-1).copy()
    while np.any(rest >= 0):
        present = np.flatnonzero(rest >= 0)
        _, first = np.unique(rest[present], return_index=True)
        part = np.full(rest.shape, -1)
        part[present[first]] = rest[present[first]]
        rest[present[first]] = -1
        yield part.reshape(band.shape)
