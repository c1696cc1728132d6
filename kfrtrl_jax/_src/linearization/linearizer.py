"""From any cell's step to J and its Kronecker sites.

The step is cut at its pre-activations z_k. Between the cuts lie local relations: of the new state and
of the products' inputs a_k to the old state and to earlier pre-activations. In the usual cells these
are element-wise, and one vector-Jacobian product with a vector of ones yields all their entries; the
others take one for every row. Going through the cuts from the last to the first,

    D_k = ds/dz_k (local) + sum_l D_l W_l^T da_l/dz_k,
    J = ds/ds_old (local) + sum_l D_l W_l^T da_l/ds_old,

where the sums need no matrix product as long as D_l is banded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import (
    Cell,
    Linearization,
    Mask,
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
from kfrtrl_jax._src.linearization.patterns import DENSE, Pattern, copies, propagate
from kfrtrl_jax._src.linearization.program import (
    Environment,
    Equation,
    Program,
    Role,
    Variable,
    evaluate,
    needed,
    origin,
    read,
)
from kfrtrl_jax._src.linearization.random_keys import check_raw_keys
from kfrtrl_jax._src.linearization.sites import (
    Bias,
    Discovery,
    PreActivation,
    Product,
    Rest,
    Scaling,
    SitePlan,
    discover,
    parameter_paths,
    plan_sites,
)
from kfrtrl_jax._src.linearization.taps import Taps, make_taps
from kfrtrl_jax._src.linearization.trace import trace
from kfrtrl_jax._src.linearization.zeros import nonzero_masks
from kfrtrl_jax._src.matrices import (
    Banded,
    BlockColumns,
    Dense,
    FactoredTerm,
    Index,
    Matrix,
    Terms,
    compose,
    places_of_bands,
    side_by_side,
    take,
    through_weights,
    total,
)

Array = jax.Array

# Rows of one target that share a source element need separate vector-Jacobian products; past this
# many, one for each row is as good.
_MAX_COLORS = 16
# The most entries of Jacobians that it is worth to look for zeros among.
_MAX_ENTRIES = 2**28
# Rows of a boolean matrix with no more entries than this are combined one by one.
_FEW = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """A flat value whose local Jacobian is wanted: a new state leaf, or what a term reads.

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
      output_of: one lane's new carry -> its output; None where the output needs more than that.
      direct: the paths of parameters that never reach the new carry; their gradient is the direct one.
      taps: the step with taps, by which losses are differentiated.
    """

    structure: Structure
    linearize: Callable[[Any, Any, Any, Array], Linearization]
    gradient: Callable[..., Any]
    flatten: Callable[[Any], Array]
    flatten_cotangent: Callable[[Any], Array]
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
      UnsupportedCellError: if the cell has no carry of floats, has an integer leaf in it that looks
        like a PRNG key and is none (or the other way round), or holds an operation that JAX cannot
        differentiate backward or a derivative rule that is no linear map.
    """
    params = jax.eval_shape(cell.init, jax.random.key(0))
    carry = jax.eval_shape(cell.initial_carry)
    _check_carry(carry)
    program = trace(cell.step, params, carry, example_input)
    check_raw_keys(program, carry)
    discovery = discover(program)
    plans = plan_sites(discovery)
    states = [v for v in program.carry if jnp.issubdtype(v.dtype, jnp.inexact)]
    local = _Local(program, discovery, states)

    def one_lane(
        params: Any, carry: Any, x: Any, keep: Array
    ) -> tuple[Linearization, tuple[Array, ...]]:
        variables = (*program.parameters, *program.carry, *program.inputs)
        environment = dict(zip(variables, real_leaves((params, carry, x)), strict=True))
        environment = evaluate((*discovery.prefix, *discovery.equations), environment)
        return _eliminate(local, plans, environment, keep)

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
    reach = _reach(local, masks) if entries <= _MAX_ENTRIES else {}

    def shape(plan: SitePlan, site: SiteJacobian) -> Site:
        (derivative,) = site.derivatives.groups
        columns = derivative.columns if isinstance(derivative, Banded) else None
        return Site(
            input_size=plan.input_size,
            output_size=plan.output_size,
            label=" + ".join(parameter_paths(program, discovery.prefix, plan.weights())),
            columns=columns,
            derivative_mask=_mask([reach.get(v) for v in plan.sources()])
            if columns is None
            else None,
            weights_mask=_mask([plan.nonzero(masks)]),
            problem=plan.problem,
        )

    structure = Structure(
        batch_size=batch_size,
        state_size=size,
        sites=tuple(map(shape, plans, shapes.sites)),
        dtype=jnp.result_type(*(v.dtype for v in states)),
        jacobian_mask=_mask([reach.get(v) for v in states]),
        leaf_sizes=tuple(math.prod(v.shape) for v in states),
        leak_mask=_mask(list(map(_places, shapes.leak.blocks)))
        if entries <= _MAX_ENTRIES
        else None,
    )

    def gradient(
        params: Any, site_gradients: SiteGradients, live_gradients: Sequence[Array] = ()
    ) -> Any:
        leaves = real_leaves(params)
        floats = [i for i, v in enumerate(program.parameters) if _is_inexact(v)]
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

    output = jax.eval_shape(cell.step, params, carry, example_input)[1]
    taps = make_taps(program, discovery, plans, carry, output)
    reaching = {path for site in structure.sites for path in site.label.split(" + ")}
    return Linearizer(
        structure,
        linearize,
        gradient,
        lambda carry: flatten(real_leaves(carry)),
        lambda cotangent: flatten(real_cotangents(cotangent)),
        _output_of(program, output),
        tuple(dict.fromkeys(path for path in program.paths if path not in reaching)),
        taps,
    )


def _is_inexact(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.inexact))


def _not_differentiable(equations: Sequence[Equation], error: Exception) -> Exception:
    """The refusal of the operation that JAX cannot differentiate backward; the error if it is none."""
    for equation in equations:
        try:
            pullback(equation.primitive, equation.params, equation.inputs)
        except Exception as cause:
            first = str(cause).strip().splitlines()[0]
            return UnsupportedCellError(f"{origin(equation)} has no derivative backward: {first}")
    return error


def _check_carry(carry: Any) -> None:
    if not any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(carry)):
        raise UnsupportedCellError(
            "carry: it holds no floats, so there is no state to have influence"
        )


def _output_of(program: Program, output: Any) -> Callable[[Any], Any] | None:
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


class _Local:
    """The step between its cuts, with the static pattern of its Jacobian."""

    def __init__(self, program: Program, discovery: Discovery, states: Sequence[Variable]):
        self.pre_activations = discovery.pre_activations
        self.states = list(states)
        self.sources: list[Variable] = [
            *states,
            *(z.variable for z in discovery.pre_activations),
            *discovery.opaque,
        ]
        self._given = [*program.inputs, *(v for v in program.carry if v not in self.sources)]
        read_by_terms = [
            term.data
            for z in discovery.pre_activations
            for term in z.terms
            if not isinstance(term, Bias)
        ]
        self.equations = needed(
            discovery.equations, [*program.new_carry, *read_by_terms], self.sources
        )
        patterns = propagate(self.equations, self.sources)
        self._copies = copies(self.equations, self.sources, patterns)
        self.new_states = [
            _target(atom, _flat, patterns, self.sources)
            for atom, v in zip(program.new_carry, program.carry)
            if v in self.sources
        ]
        self.reads: dict[tuple[int, int], Target] = {}
        for i, z in enumerate(self.pre_activations):
            for j, term in enumerate(z.terms):
                if not isinstance(term, Bias):
                    self.reads[i, j] = _target(term.data, term.vector, patterns, self.sources)

    def jacobians(
        self, environment: Environment, keep: Array
    ) -> dict[Target, dict[Variable, Matrix]]:
        """Every target's local Jacobian by every source it depends on.

        Where keep is 0 those by the old state are 0, however infinite they are: there is no past. What
        is copied unchanged from the old state has its static ones all the same.
        """
        targets = [*self.new_states, *self.reads.values()]
        given: Environment = {
            v: value
            for v, value in environment.items()
            if v in self._given or v.role is Role.PARAMETER
        }

        def values_of(sources: list[Array]) -> list[Array]:
            values = evaluate(self.equations, {**given, **dict(zip(self.sources, sources))})
            return [target.arrange(jnp.asarray(read(values, target.value))) for target in targets]

        values, pullback = jax.vjp(values_of, [environment[v] for v in self.sources])

        def cotangents(target: Target, rows: Array) -> list[Array]:
            """The derivative by each source, flat, of the sum of a target's rows."""
            seeds = [
                rows if other is target else jnp.zeros_like(value)
                for other, value in zip(targets, values)
            ]
            (result,) = pullback(seeds)
            return [c.reshape(-1) for c in result]

        place = {v: i for i, v in enumerate(self.sources)}
        jacobians: dict[Target, dict[Variable, Matrix]] = {}
        for target, value in zip(targets, values):
            jacobians[target] = {}
            banded = {v: columns for v, columns in target.relations.items() if columns is not None}
            copied = self._copied(target)
            for v in [v for v in banded if v in copied]:
                bands = banded.pop(v)
                ones = cast(Array, (bands >= 0).astype(value.dtype))  # see Banded
                jacobians[target][v] = Banded(ones, Index(bands), math.prod(v.shape))
            if banded:
                by_color = [
                    cotangents(target, jnp.asarray(target.colors == color, value.dtype))
                    for color in range(int(target.colors.max(initial=0)) + 1)
                ]
                for v, bands in banded.items():
                    jacobians[target][v] = _banded(
                        [cs[place[v]] for cs in by_color], bands, target.colors
                    )
            if any(columns is None for columns in target.relations.values()):
                rows = jax.vmap(lambda seed, t=target: cotangents(t, seed))(
                    jnp.eye(target.rows, dtype=value.dtype)
                )
                for v, columns in target.relations.items():
                    if columns is None:
                        jacobians[target][v] = Dense(rows[place[v]])
            for v in set(jacobians[target]).intersection(self.states):
                if not isinstance(jacobians[target][v].values, np.ndarray):
                    jacobians[target][v] = jacobians[target][v].kept(keep)
        return jacobians

    def _copied(self, target: Target) -> frozenset[Variable]:
        """The sources that a target holds elements of unchanged."""
        if not isinstance(target.value, Variable):
            return frozenset()
        return self._copies.get(target.value, frozenset())


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
    if all(len(np.unique(c[c >= 0])) == np.count_nonzero(c >= 0) for c in relations.values()):
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


def _eliminate(
    local: _Local, plans: Sequence[SitePlan], environment: Environment, keep: Array
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
    sites = tuple(_site(plan, derivatives, environment) for plan in plans)
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


def _reach(local: _Local, masks: dict[Variable, np.ndarray]) -> dict[Variable, np.ndarray]:
    """For every source, where the new state's derivative by it can be non-zero: [n, size].

    The elimination below once more, on where its matrices can be non-zero.

    Args:
      local: the local relations.
      masks: where parameter-only values can be non-zero, for those with known zeros.
    """
    starts = np.cumsum([0, *(target.rows for target in local.new_states)])
    reach = {v: np.zeros((starts[-1], math.prod(v.shape)), bool) for v in local.sources}
    for target, start, stop in zip(local.new_states, starts, starts[1:]):
        for source, columns in target.relations.items():
            reach[source][start:stop] = _boolean(columns, target.rows, math.prod(source.shape))
    for i in reversed(range(len(local.pre_activations))):
        z = local.pre_activations[i]
        for j, term in enumerate(z.terms):
            if isinstance(term, Bias):
                continue
            target = local.reads[i, j]
            mask = None if isinstance(term, Rest) else masks.get(term.weights)
            derivative = reach[z.variable]
            if isinstance(term, Scaling) and mask is not None:
                derivative = derivative & term.vector(mask)
            elif isinstance(term, Product) and mask is not None:
                derivative = _boolean_product(derivative, term.nonzero(mask).T)
            for source, columns in target.relations.items():
                relation = _boolean(columns, target.rows, math.prod(source.shape))
                if isinstance(term, Product) and mask is None:
                    reached = np.outer(derivative.any(axis=1), relation.any(axis=0))
                else:
                    reached = _boolean_product(relation.T, derivative.T).T
                reach[source] |= reached
    return reach


def _places(matrix: Matrix) -> np.ndarray:
    """Where a matrix can be non-zero, by its form."""
    if isinstance(matrix, Banded):
        return places_of_bands(matrix.columns.array, matrix.num_columns)
    return np.ones(matrix.shape, bool)


def _boolean(columns: np.ndarray | None, rows: int, size: int) -> np.ndarray:
    """Where a local Jacobian of the given bands can be non-zero, [rows, size]."""
    if columns is None:
        return np.ones((rows, size), bool)
    return places_of_bands(columns, size)


def _boolean_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The product of boolean matrices; where rows of `left` are nearly empty no product is formed."""
    counts = left.sum(axis=1)
    if counts.max(initial=0) > _FEW:
        return (left.astype(np.float32) @ right.astype(np.float32)) > 0
    _, columns = np.nonzero(left)
    first = np.cumsum(counts) - counts
    product = np.zeros((len(left), right.shape[1]), bool)
    for k in range(int(counts.max(initial=0))):
        having = np.flatnonzero(counts > k)
        product[having] |= right[columns[first[having] + k]]
    return product


def _mask(parts: Sequence[np.ndarray | None]) -> Mask | None:
    """Boolean matrices side by side, or None where they hold everything."""
    whole = [part for part in parts if part is not None]
    return Mask(np.concatenate(whole, axis=1)) if not all(map(np.all, whole)) else None


def _placed(block: Matrix, start: int, rows: int) -> Matrix:
    """A block of rows at its place among `rows` rows, zero elsewhere."""
    below = rows - start - block.shape[0]
    if isinstance(block, Dense):
        return Dense(jnp.pad(block.values, ((start, below), (0, 0))))
    columns = np.pad(block.columns.array, ((0, 0), (start, below)), constant_values=-1)
    values = jnp.pad(block.values, ((0, 0), (start, below)))
    return Banded(values, Index(columns), block.num_columns)


def _site(
    plan: SitePlan, derivatives: dict[Variable, Matrix], environment: Environment
) -> SiteJacobian:
    if plan.opaque is not None:
        derivative = derivatives[plan.opaque]
    elif plan.scaling is not None:
        (z,) = plan.pre_activations
        vector = plan.scaling.vector(environment[plan.scaling.data])
        derivative = derivatives[z.variable].scale_columns(vector)
    else:
        derivative = side_by_side([derivatives[z.variable] for z in plan.pre_activations])
    term = dataclasses.replace(derivative, values=derivative.values[None])
    return SiteJacobian(plan.input(environment, derivative.values.dtype)[None], Terms((term,)))


__all__ = ["Linearizer", "PreActivation", "make_linearizer"]
