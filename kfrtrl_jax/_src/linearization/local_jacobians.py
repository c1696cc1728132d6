"""The step between its cuts, and its Jacobians there by colored vector-Jacobian products.

In the usual cells these are element-wise, and one vector-Jacobian product with a vector of ones yields
all their entries; the others take one for every color, or for every row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.linearization.discovery import Discovery, InnerLoop, PreActivation
from kfrtrl_jax._src.linearization.patterns import DENSE, Pattern, copies, propagate
from kfrtrl_jax._src.linearization.program import (
    Atom,
    Environment,
    Variable,
    evaluate,
    is_inexact,
    needed,
    read,
)
from kfrtrl_jax._src.linearization.weight_terms import Bias
from kfrtrl_jax._src.matrices import (
    Banded,
    Dense,
    Index,
    Matrix,
    take,
)

Array = jax.Array

# Rows of one target that share a source element need separate vector-Jacobian products; with more
# colors than this, one per row is used.
_MAX_COLORS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """A flat value whose local Jacobian is computed: a new state leaf, or what a term reads.

    Attributes:
      value: the variable it comes from.
      arrange: from the variable's value (or an array of indices) to the flat one.
      colors: [rows], static: rows of one color share no source element of the banded relations.
      relations: for every source it depends on, the bands [bands, rows] of columns, or None if dense.
    """

    value: Any
    arrange: Callable[[Any], Any]
    colors: np.ndarray
    relations: dict[Variable, np.ndarray | None]

    @property
    def rows(self) -> int:
        """The number of its elements."""
        return len(self.colors)


class LocalJacobians:
    """The step between its cuts, with the static pattern of its Jacobian."""

    def __init__(
        self, discovery: Discovery, states: Sequence[Variable], results: Sequence[Atom]
    ) -> None:
        """The pattern of the equations between the cuts.

        Args:
          discovery: the cuts: pre-activations and loops.
          states: what the equations start from, and that there are derivatives by.
          results: what they make, and that there are derivatives of.
        """
        self.cuts = discovery.cuts
        self.states = list(states)
        self.sources: list[Variable] = [
            *states,
            *(z.variable for z in discovery.pre_activations),
            *discovery.opaque,
            *(v for inner in discovery.loops for v in inner.loop.outputs if is_inexact(v)),
        ]
        read_by_cuts = [atom for cut in self.cuts for atom, _ in _reads(cut).values()]
        self.equations = needed(discovery.equations, [*results, *read_by_cuts], self.sources)
        made = {*self.sources, *(v for e in self.equations for v in e.outputs)}
        read = {*results, *read_by_cuts, *(a for e in self.equations for a in e.inputs)}
        self._given = {a for a in read - made if isinstance(a, Variable)}
        patterns = propagate(self.equations, self.sources)
        self._copies = copies(self.equations, self.sources, patterns)
        self.results = [_target(atom, _flat, patterns, self.sources) for atom in results]
        # By the number of the cut, and of what it reads.
        self.reads: dict[tuple[int, int], Target] = {
            (i, j): _target(atom, arrange, patterns, self.sources)
            for i, cut in enumerate(self.cuts)
            for j, (atom, arrange) in _reads(cut).items()
        }

    def layers(self) -> list[slice]:
        """The step's layers: stretches of the results, one after the other.

        Two results that depend on each other's old state are in the same layer, and so is what stands
        between them. A step with a loop in it has one layer.
        """
        if any(isinstance(cut, InnerLoop) for cut in self.cuts):
            return [slice(0, len(self.results))]
        states: dict[Variable, set[int]] = {v: {i} for i, v in enumerate(self.states)}

        def behind(target: Target) -> set[int]:
            """The states that a target depends on."""
            return set().union(*(states.get(v, set()) for v in target.relations))

        for i, cut in enumerate(self.cuts):
            assert not isinstance(cut, InnerLoop)
            states[cut.variable] = set().union(*map(behind, self.reads_of(i)))
        count = len(self.results)
        depends = np.eye(count, dtype=bool)
        for i, target in enumerate(self.results):
            depends[i, sorted(behind(target))] = True
        for _ in range(count):
            depends = depends @ depends
        linked = depends & depends.T
        starts = [i for i in range(count) if not linked[i:, :i].any()]
        return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], count])]

    def reads_of(self, cut: int) -> list[Target]:
        """What a cut reads, by its number."""
        return [target for (i, _), target in self.reads.items() if i == cut]

    def jacobians(
        self, environment: Environment, keep: Array
    ) -> dict[Target, dict[Variable, Matrix]]:
        """Every target's local Jacobian by every source it depends on.

        Where keep is 0 those by the old state are 0, even if infinite, as there is no past. Entries
        copied unchanged from the old state are ones all the same.
        """
        known: Environment = {v: environment[v] for v in (*self._given, *self.sources)}
        jacobians: dict[Target, dict[Variable, Matrix]] = {}
        for target in (*self.results, *self.reads.values()):
            jacobians[target] = {}
            if not target.relations:
                continue
            value, pulled = self._pullback(target, known)
            place = {v: i for i, v in enumerate(target.relations)}
            banded = {v: columns for v, columns in target.relations.items() if columns is not None}
            copied = self._copied(target)
            for v in [v for v in banded if v in copied]:
                bands = banded.pop(v)
                ones = cast(Array, (bands >= 0).astype(value.dtype))  # see Banded
                jacobians[target][v] = Banded(ones, Index(bands), math.prod(v.shape))
            if banded:
                by_color = [
                    pulled(jnp.asarray(target.colors == color, value.dtype))
                    for color in range(int(target.colors.max(initial=0)) + 1)
                ]
                for v, bands in banded.items():
                    jacobians[target][v] = _banded(
                        [cs[place[v]] for cs in by_color], bands, target.colors
                    )
            if any(columns is None for columns in target.relations.values()):
                rows = jax.vmap(pulled)(jnp.eye(target.rows, dtype=value.dtype))
                for v, columns in target.relations.items():
                    if columns is None:
                        jacobians[target][v] = Dense(rows[place[v]])
            for v in set(jacobians[target]).intersection(self.states):
                if not isinstance(jacobians[target][v].values, np.ndarray):
                    jacobians[target][v] = jacobians[target][v].kept(keep)
        return jacobians

    def _pullback(
        self, target: Target, known: Environment
    ) -> tuple[Array, Callable[[Array], list[Array]]]:
        """A target's value, and the derivatives of the sum of its rows by its sources, all flat.

        Each target is differentiated alone: a cotangent of zeros for another one would be taken back
        through all that the other one is made of.
        """
        sources = list(target.relations)
        equations = needed(self.equations, [target.value], self.sources)

        def value_of(values: list[Array]) -> Array:
            found = evaluate(equations, {**known, **dict(zip(sources, values))})
            return target.arrange(jnp.asarray(read(found, target.value)))

        value, pullback = jax.vjp(value_of, [known[v] for v in sources])

        def pulled(rows: Array) -> list[Array]:
            (cotangents,) = pullback(rows)
            return [c.reshape(-1) for c in cotangents]

        return value, pulled

    def _copied(self, target: Target) -> frozenset[Variable]:
        """The sources that a target holds elements of unchanged."""
        if not isinstance(target.value, Variable):
            return frozenset()
        return self._copies.get(target.value, frozenset())


def local_of(inner: InnerLoop) -> LocalJacobians:
    """One iteration of a loop, between its cuts."""
    body = inner.loop.body
    results = [a for a in (*body.new_carried, *body.stacked) if is_inexact(a)]
    return LocalJacobians(inner.discovery, list(filter(is_inexact, body.starts)), results)


def _reads(cut: PreActivation | InnerLoop) -> dict[int, tuple[Atom, Callable[[Any], Any]]]:
    """What a cut reads, by the number of its term or input, and how that becomes a vector."""
    if isinstance(cut, InnerLoop):
        inputs = enumerate(cut.loop.data_inputs)
        return {j: (atom, _flat) for j, atom in inputs if is_inexact(atom)}
    return {j: (t.data, t.vector) for j, t in enumerate(cut.terms) if not isinstance(t, Bias)}


def _flat(value: Any) -> Any:
    return value.reshape(-1)


def _banded(by_color: list[Array], columns: np.ndarray, colors: np.ndarray) -> Banded:
    """The matrix of the entries that the colors' vector-Jacobian products, [columns] each, hold."""
    values = []
    for band in columns:
        value = take(by_color[0], band, axis=-1)
        for color in range(1, len(by_color)):
            value = jnp.where(colors == color, take(by_color[color], band, axis=-1), value)
        values.append(value)
    return Banded(jnp.stack(values), Index(columns), len(by_color[0]))


def _target(
    atom: Any,
    arrange: Callable[[Any], Any],
    patterns: dict[Variable, Pattern],
    sources: Sequence[Variable],
) -> Target:
    pattern = patterns.get(atom, {}) if isinstance(atom, Variable) else {}
    rows = len(arrange(np.arange(math.prod(atom.shape)).reshape(atom.shape)))
    relations: dict[Variable, np.ndarray | None] = {}
    for source in sources:
        relation = pattern.get(source)
        if isinstance(relation, list):
            relations[source] = np.stack([arrange(band) for band in relation])
        elif relation is DENSE:
            relations[source] = None
    colors = _colors({v: c for v, c in relations.items() if c is not None}, rows)
    if colors is None:
        return Target(atom, arrange, np.zeros(rows, int), dict.fromkeys(relations))
    return Target(atom, arrange, colors, relations)


def _colors(relations: dict[Variable, np.ndarray], rows: int) -> np.ndarray | None:
    """A color for each row, such that rows of one color share no source element; None if too many."""
    colors = np.zeros(rows, int)
    if not any(np.any(np.bincount(c[c >= 0]) > 1) for c in relations.values()):
        return colors
    taken: dict[tuple[int, int], set[int]] = {}
    for row in range(rows):
        elements = [
            (i, int(column))
            for i, columns in enumerate(relations.values())
            for column in columns[:, row]
            if column >= 0
        ]
        used = set().union(*(taken.get(e, set()) for e in elements)) if elements else set()
        color = next(c for c in range(len(used) + 1) if c not in used)
        if color >= _MAX_COLORS:
            return None
        colors[row] = color
        for e in elements:
            taken.setdefault(e, set()).add(color)
    return colors
