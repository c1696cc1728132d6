"""From the Jacobians between the cuts to J and every D.

In reverse order of the cuts,

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
from kfrtrl_jax._src.linearization.discovery import InnerLoop, PreActivation
from kfrtrl_jax._src.linearization.local_jacobians import LocalJacobians, Target, local_of
from kfrtrl_jax._src.linearization.program import (
    Environment,
    Variable,
    evaluate,
    is_inexact,
)
from kfrtrl_jax._src.linearization.sites import SitePlan
from kfrtrl_jax._src.linearization.weight_terms import Product, Scaling
from kfrtrl_jax._src.matrices import (
    Banded,
    BlockColumns,
    Dense,
    FactoredTerm,
    Matrix,
    below_each_other,
    compose,
    placed,
    plain,
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

    Layers of a deep network, whose states depend on those of lower layers alone, are taken one by one:
    so a layer's own block of rows keeps its form, whatever the form of those of the layers above.

    The weights of J's products, which have no lanes, are apart from them.
    """
    jacobians = local.jacobians(environment, keep)
    layers = [_eliminated(local, jacobians, which, environment, keep) for which in local.layers()]
    sizes = [layer.rows for layer in layers]
    products = [
        dataclasses.replace(p, left=p.left.placed(start, sum(sizes)))
        for layer, start in zip(layers, np.cumsum([0, *sizes]))
        for p in layer.products
    ]
    jacobian = BlockColumns(
        tuple(below_each_other([layer.derivatives[v] for layer in layers]) for v in local.states),
        tuple(dataclasses.replace(p, weights=None) for p in products),
    )
    leak = BlockColumns(
        tuple(plain(below_each_other([layer.leak[v] for layer in layers])) for v in local.states)
    )
    of_layers = [layer.derivatives for layer in layers]
    sites = tuple(plan.jacobian(of_layers, layers[0].environment) for plan in plans)
    return Linearization(jacobian, sites, leak, keep), tuple(p.weights for p in products)


class _Rows(NamedTuple):
    """Some rows of J and of every D.

    Attributes:
      rows: how many.
      leak: by the leaves of the state.
      derivatives: by all sources, those of J without the products.
      products: of J.
      environment: the values of a step, also those inside of loops.
    """

    rows: int
    leak: dict[Variable, Matrix]
    derivatives: dict[Variable, Matrix]
    products: list[FactoredTerm]
    environment: Environment


def _eliminated(
    local: LocalJacobians,
    jacobians: dict[Target, dict[Variable, Matrix]],
    which: slice,
    environment: Environment,
    keep: Array,
) -> _Rows:
    """The rows that belong to some of the new state's leaves."""
    results = local.results[which]
    rows = [target.rows for target in results]
    state_size = sum(rows)

    def direct(source: Variable) -> Matrix:
        """The new state's local Jacobian, the leaves one below the other."""
        size = math.prod(source.shape)
        blocks = [jacobians[target].get(source) for target in results]
        starts = np.cumsum([0, *rows])
        return total(
            [placed(b, start, state_size) for b, start in zip(blocks, starts) if b is not None],
            state_size,
            size,
        )

    sums: dict[Variable, list[Matrix]] = {source: [direct(source)] for source in local.sources}
    for v in local.states:
        sums[v] = [sums[v][0].kept(keep)]
    direct_sums = {v: list(terms) for v, terms in sums.items()}
    without_products = _Walk(local, jacobians, direct_sums, environment, state_size, keep)
    by_source = without_products.through_all(products=False)
    leak = {v: by_source[v] for v in local.states}
    walk = _Walk(local, jacobians, sums, environment, state_size, keep)
    derivatives = walk.through_all()
    products = _merged(walk.factored, environment)
    return _Rows(state_size, leak, derivatives, products, walk.environment)


class _Walk:
    """What goes backward through the cuts: the derivatives of the new state by what they make.

    Attributes:
      environment: the values of a step, later those inside of loops too, one below the other.
      factored: the terms of J that are not multiplied out.
    """

    def __init__(
        self,
        local: LocalJacobians,
        jacobians: dict[Target, dict[Variable, Matrix]],
        sums: dict[Variable, list[Matrix]],
        environment: Environment,
        state_size: int,
        keep: Array | None = None,
    ) -> None:
        """At the last cut.

        Args:
          local: the cuts.
          jacobians: of what they read.
          sums: by each source, the terms of the derivative by it that are known.
          environment: the values of a step.
          state_size: n.
          keep: [], 0 for a lane that starts anew; None inside of a loop, where no state is cut off.
        """
        self._local, self._jacobians, self._sums = local, jacobians, sums
        self.environment = environment
        self._state_size, self._keep = state_size, keep
        self._derivatives: dict[Variable, Matrix] = {}
        self.factored: list[_Factored] = []

    def through_all(self, products: bool = True) -> dict[Variable, Matrix]:
        """The derivatives by all sources, and by the pre-activations inside of loops.

        Args:
          products: whether also along the paths through products and loops.
        """
        for i in reversed(range(len(self._local.cuts))):
            cut = self._local.cuts[i]
            if isinstance(cut, PreActivation):
                self._through_pre_activation(i, cut, products)
            elif products:
                self._through_loop(i, cut)
        for v in self._local.sources:
            self._by(v)
        return self._derivatives

    def _by(self, v: Variable) -> Matrix:
        """The derivative by a source, of which all terms are known."""
        if v not in self._derivatives:
            size = math.prod(v.shape)
            self._derivatives[v] = total(self._sums[v], self._state_size, size)
        return self._derivatives[v]

    def _through_pre_activation(self, i: int, z: PreActivation, products: bool) -> None:
        derivative = self._by(z.variable)
        if isinstance(derivative, Banded) and not derivative.num_bands:
            return
        for j, term in enumerate(z.terms):
            if isinstance(term, Product) and not products:
                continue
            target = self._local.reads.get((i, j))
            for source, relation in self._jacobians[target].items() if target else ():
                left, keep = derivative, self._keep_of(source)
                # Set to 0 on the factors, so that J is written once.
                if keep is not None and isinstance(left, Banded):
                    left = left.kept(keep)
                elif keep is not None and isinstance(relation.values, np.ndarray):
                    relation = relation.kept(keep)
                if isinstance(term, Product):
                    weights = term.matrix(self.environment[term.weights])
                    if keep is not None and isinstance(left, Banded) and left.num_bands:
                        block = self._local.states.index(source)
                        self.factored.append(_Factored(left, term, relation, block))
                        continue
                    contribution = through_weights(left, weights, relation)
                elif isinstance(term, Scaling):
                    scales = term.vector(self.environment[term.weights])
                    contribution = compose(left.scale_columns(scales), relation)
                else:
                    contribution = compose(left, relation)
                self._sums[source].append(contribution)

    def _through_loop(self, i: int, inner: InnerLoop) -> None:
        loop = inner.loop
        lefts = [self._by(v).dense() for v in loop.outputs if is_inexact(v)]
        found = _pulled_through(inner, lefts, self.environment)
        self._derivatives.update((v, Dense(d)) for v, d in found.derivatives.items())
        self.environment = {**self.environment, **found.values}
        for by_input, target in zip(found.by_inputs, self._local.reads_of(i)):
            for source, relation in self._jacobians[target].items():
                left, keep = Dense(by_input), self._keep_of(source)
                kept = left if keep is None else left.kept(keep)
                self._sums[source].append(compose(kept, relation))

    def _keep_of(self, source: Variable) -> Array | None:
        """What cuts off the derivative by a source in a lane that starts anew, if anything does."""
        return self._keep if source in self._local.states else None


class _Pulled(NamedTuple):
    """What goes backward through a loop.

    Attributes:
      by_inputs: the new state's derivative by each of its inputs that is of floats, [n, size].
      derivatives: that by the pre-activations inside, [iterations, n, size].
      values: what the weights' uses inside read, [iterations, ...].
    """

    by_inputs: list[Array]
    derivatives: dict[Variable, Array]
    values: Environment


def _pulled_through(inner: InnerLoop, lefts: list[Array], environment: Environment) -> _Pulled:
    """Backward through the iterations of a loop, from the last to the first.

    Args:
      inner: the loop.
      lefts: the new state's derivative by each of its outputs that is of floats, [n, size].
      environment: the values of a step.
    """
    loop, body = inner.loop, inner.loop.body
    constants, carried, scanned = body.floats
    local = local_of(inner)
    inside = [v for v, _ in inner.discovery.tapped()]
    met = inner.discovery.met()
    size, dtype = len(lefts[0]), jnp.result_type(*lefts)
    lefts = [d.astype(dtype) for d in lefts]

    def starts(values: Environment, _: Any) -> tuple[Environment, list[Array]]:
        return evaluate(body.equations, values), [values[v] for v in body.starts]

    _, values = loop.run(environment, environment, starts)

    def one(carry: Any, xs: Any) -> Any:
        by_carried, by_constants = carry
        by_stacked, start = xs
        known = {v: environment[v] for v in body.captured} | dict(zip(body.starts, start))
        known = evaluate(body.equations, known)
        jacobians = local.jacobians(known, jnp.ones(()))
        sums: dict[Variable, list[Matrix]] = {source: [] for source in local.sources}
        for left, target in zip((*by_carried, *by_stacked), local.results):
            for source, relation in jacobians[target].items():
                sums[source].append(compose(Dense(left), relation))
        walk = _Walk(local, jacobians, sums, known, size)
        found = {v: m.dense().astype(dtype) for v, m in walk.through_all().items()}
        new = [found[v] for v in carried], [d + found[v] for d, v in zip(by_constants, constants)]
        seen = [found[v] for v in scanned], [found[v] for v in inside]
        return new, (*seen, [walk.environment[v] for v in met])

    by_carried, by_stacked = lefts[: len(carried)], lefts[len(carried) :]
    apart = [jnp.moveaxis(d.reshape(size, loop.length, -1), 1, 0) for d in by_stacked]
    nothing = [jnp.zeros((size, math.prod(v.shape)), dtype) for v in constants]
    (by_carried, by_constants), (by_scanned, derivatives, seen) = loop.scan(
        one, (by_carried, nothing), (apart, values), backward=True
    )
    together = [jnp.moveaxis(d, 0, 1).reshape(size, -1) for d in by_scanned]
    return _Pulled(
        [*by_constants, *by_carried, *together],
        dict(zip(inside, derivatives)),
        dict(zip(met, seen)),
    )


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
    """The terms of J, those that read the same vector merged: their D and W are concatenated.

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
