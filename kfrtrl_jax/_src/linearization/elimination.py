"""From the Jacobians between the cuts to J and every D.

Going through the cuts from the last to the first,

    D_k = ds/dz_k (local) + sum_l D_l W_l^T da_l/dz_k,
    J = ds/ds_old (local) + sum_l D_l W_l^T da_l/ds_old,

where the sums need no matrix product as long as D_l is banded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Linearization
from kfrtrl_jax._src.linearization.local_jacobians import LocalJacobians
from kfrtrl_jax._src.linearization.program import (
    Environment,
    Variable,
)
from kfrtrl_jax._src.linearization.sites import SitePlan
from kfrtrl_jax._src.linearization.weight_terms import Product, Scaling
from kfrtrl_jax._src.matrices import (
    Banded,
    BlockColumns,
    Dense,
    FactoredTerm,
    Index,
    Matrix,
    compose,
    side_by_side,
    take,
    through_weights,
    total,
)

Array = jax.Array


def eliminate(
    local: LocalJacobians, plans: Sequence[SitePlan], environment: Environment, keep: Array
) -> tuple[Linearization, tuple[Array, ...]]:
    """J and every D of one lane, through the cuts from the last to the first.

    The weights of J's products, which have no lanes, are apart from them.
    """
    jacobians = local.jacobians(environment, keep)
    rows = [target.rows for target in local.new_states]
    state_size = sum(rows)

    def direct(source: Variable) -> Matrix:
        """The new state's local Jacobian, the leaves one below the other."""
        size = math.prod(source.shape)
        blocks = [jacobians[target].get(source) for target in local.new_states]
        starts = np.cumsum([0, *rows])
        return total(
            [_placed(b, start, state_size) for b, start in zip(blocks, starts) if b is not None],
            state_size,
            size,
        )

    sums: dict[Variable, list[Matrix]] = {source: [direct(source)] for source in local.sources}
    for v in local.states:
        sums[v] = [sums[v][0].kept(keep)]
    leak = BlockColumns(tuple(sums[v][0] for v in local.states))
    factored: list[_Factored] = []
    derivatives: dict[Variable, Matrix] = {}
    for i in reversed(range(len(local.pre_activations))):
        z = local.pre_activations[i]
        derivative = total(sums[z.variable], state_size, z.size)
        derivatives[z.variable] = derivative
        for j, term in enumerate(z.terms):
            target = local.reads.get((i, j))
            if target is None:
                continue
            for source, relation in jacobians[target].items():
                left = derivative
                if source in local.states:
                    # Chosen on the factors, so that J itself is written once and nothing done to it.
                    if isinstance(left, Banded):
                        left = left.kept(keep)
                    elif isinstance(relation.values, np.ndarray):
                        relation = relation.kept(keep)
                if isinstance(term, Product):
                    weights = term.matrix(environment[term.weights])
                    if source in local.states and isinstance(left, Banded) and left.num_bands:
                        block = local.states.index(source)
                        factored.append(_Factored(left, term, relation, block))
                        continue
                    contribution = through_weights(left, weights, relation)
                elif isinstance(term, Scaling):
                    weights = term.vector(environment[term.weights])
                    contribution = compose(left.scale_columns(weights), relation)
                else:
                    contribution = compose(left, relation)
                sums[source].append(contribution)
    for v in local.sources:
        if v not in derivatives:
            derivatives[v] = total(sums[v], state_size, math.prod(v.shape))

    products = _merged(factored, environment)
    jacobian = BlockColumns(
        tuple(derivatives[v] for v in local.states),
        tuple(dataclasses.replace(p, weights=None) for p in products),
    )
    sites = tuple(plan.jacobian(derivatives, environment) for plan in plans)
    return Linearization(jacobian, sites, leak, keep), tuple(p.weights for p in products)


class _Factored(NamedTuple):
    """A term of J, D_k W_k^T da_k/ds: D_k, the term of the pre-activation, and da_k/ds by a leaf."""

    left: Banded
    term: Product
    relation: Matrix
    block: int

    @property
    def weights_key(self) -> tuple[Any, ...]:
        """What tells whether W is made of the same parameter in the same way as another one's."""
        return self.term.weights, self.term.weight_axes


def _merged(terms: Sequence[_Factored], environment: Environment) -> list[FactoredTerm]:
    """The terms of J, those that read the same vector as one: their D side by side, their W too.

    Where the vector holds the state's leaf as it is, the rows of W that meet it are all that is needed.
    """
    groups: dict[Any, list[_Factored]] = {}
    for term in terms:
        groups.setdefault((term.block, term.term.data_key), []).append(term)
    merged = []
    for members in groups.values():
        # In the order of their columns, gates cut out of one product are that product again.
        members.sort(key=lambda member: int(member.term.select[0]))
        first = members[0]
        left = side_by_side([member.left for member in members])
        assert isinstance(left, Banded)
        if all(member.weights_key == first.weights_key for member in members):
            columns = np.concatenate([member.term.select for member in members])
            weights = first.term._replace(select=columns).matrix(environment[first.term.weights])
        else:
            parts = [member.term.matrix(environment[member.term.weights]) for member in members]
            weights = jnp.concatenate(parts, axis=-1)
        right: Matrix | None = first.relation
        if isinstance(right, Banded) and right.num_bands == 1 and _is_copy(right):
            (rows,) = right.rows_of_columns()
            weights, right = take(weights, rows, axis=-2), None
        merged.append(FactoredTerm(left, weights.T, right, first.block))
    return merged


def _is_copy(matrix: Banded) -> bool:
    """Whether a matrix is known to hold ones alone, one in each column."""
    ones = isinstance(matrix.values, np.ndarray) and np.all(
        matrix.values[matrix.columns.array >= 0]
    )
    return bool(ones) and bool(np.all(matrix.rows_of_columns() >= 0))


def _placed(block: Matrix, start: int, rows: int) -> Matrix:
    """A block of rows at its place among `rows` rows, zero elsewhere."""
    below = rows - start - block.shape[0]
    if isinstance(block, Dense):
        return Dense(jnp.pad(block.values, ((start, below), (0, 0))))
    columns = np.pad(block.columns.array, ((0, 0), (start, below)), constant_values=-1)
    values = jnp.pad(block.values, ((0, 0), (start, below)))
    return Banded(values, Index(columns), block.num_columns)
