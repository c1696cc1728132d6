"""The sites of a step: parameters, and all their uses.

Pre-activations with the same inputs share a. Sites are merged as far as possible: a cell
written with a matrix for every gate and one for every input costs what the fused one does. What a step
uses again and again, a convolution's kernel, a weight in the iterations of a solver, is one site with
as many terms.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import SiteJacobian
from kfrtrl_jax._src.linearization.discovery import Discovery, PreActivation
from kfrtrl_jax._src.linearization.patterns import MOVES_ONE, move
from kfrtrl_jax._src.linearization.program import Environment, Equation, Variable, has_gradient
from kfrtrl_jax._src.linearization.weight_terms import Product, Scaling
from kfrtrl_jax._src.matrices import (
    Banded,
    Dense,
    Group,
    Matrix,
    Shared,
    Terms,
    below_each_other,
    plain,
    side_by_side,
    stacked,
    take,
)

Array = jax.Array


class Use(Protocol):
    """Where a step meets a site's weights: once, or several times alike."""

    @property
    def count(self) -> int:
        """How many times."""

    @property
    def signature(self) -> tuple[Any, ...]:
        """A key that is equal iff two uses are of the same weights, in the same way."""

    @property
    def input_size(self) -> int:
        """The number m of rows of the block of weights."""

    @property
    def output_size(self) -> int:
        """The number g of its columns."""

    def sources(self) -> list[Variable]:
        """What the columns of D belong to: pre-activations, or an opaque value."""

    def weights(self) -> list[Variable]:
        """The parameter-only values that the block of weights holds, each once."""

    def weights_of_columns(self) -> list[tuple[int, list[Variable]]]:
        """From left to right how many of its columns hold which of these."""

    def reads(self) -> list[Variable]:
        """The data that the weights meet."""

    def inputs(self, environment: Environment) -> Array:
        """a, [count, m], at the values of a step: the constant 1 for what is no product."""

    def derivative(self, derivatives: Mapping[Variable, Matrix], environment: Environment) -> Group:
        """D, [count, n, g], from those by the sources."""

    def reached(self, reach: Mapping[Variable, np.ndarray]) -> np.ndarray:
        """Where D can be non-zero, [n, g], in any of the uses, from that of the sources."""

    def met(self, environment: Environment) -> Array:
        """What the weights meet, [count, m]; for element-wise ones what they scale, [count, g]."""

    def cotangents_of(self, taps: Mapping[Variable, Array]) -> Array:
        """The loss's derivative by z, [K, B, count, g], from that by each source, [K, B, its size]."""

    def gradient(self, met: Array, cotangents: Array) -> Array:
        """The sum over steps, lanes and uses, [m, g].

        Args:
          met: [K, B, T, m] (or g), of all uses of the site; what `met` says.
          cotangents: [K, B, T, g], of all uses; what `cotangents_of` says.
        """

    def nonzero(self, masks: Mapping[Variable, np.ndarray]) -> np.ndarray | None:
        """Which entries of the block of weights can be non-zero, [m, g]; None for all of them.

        Args:
          masks: where parameter-only values can be non-zero, for those with known zeros.
        """

    def cotangents(self, block: Array) -> list[tuple[Variable, Array]]:
        """The gradient of each of `weights()`, from the gradient of the block, [m, g]."""


class Placed(NamedTuple):
    """A term among the columns of a part.

    Attributes:
      term: the term.
      weights: the parameter-only value whose elements it takes.
      columns: [g]: which column of it each column of the part is; of a bias, which element.
    """

    term: Any
    weights: Variable
    columns: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """The terms of a pre-activation that meet data in the same uses.

    Attributes:
      z: the pre-activation.
      elements: the element of z that each column is in each use, [uses, g]; -1 for none.
      products: its products.
      biases: its biases.
    """

    z: Variable
    elements: np.ndarray
    products: tuple[Placed, ...]
    biases: tuple[Placed, ...]

    @property
    def count(self) -> int:
        """The number of uses."""
        return len(self.elements)

    @property
    def size(self) -> int:
        """The number g of columns."""
        return self.elements.shape[1]

    @property
    def input_key(self) -> tuple[Any, ...]:
        """A key that is equal iff two parts have the same inputs."""
        return frozenset(p.term.data_key for p in self.products), bool(self.biases)

    def of_columns(self, values: np.ndarray) -> np.ndarray | None:
        """What all elements of each column have in common, [g]; None if a column's differ.

        Args:
          values: of the elements of z.
        """
        of_elements = np.where(self.elements >= 0, values[self.elements], -1)
        common = of_elements.max(axis=0)
        return common if np.all((of_elements == common) | (self.elements < 0)) else None


def _parts(z: PreActivation, root_of: Callable[[Variable], Any]) -> list[Part]:
    """The terms of a pre-activation by their uses, those of element-wise weights apart.

    Args:
      z: the pre-activation.
      root_of: parameter-only value -> what it repeats the elements of, and which.
    """
    parts: list[Part] = []
    for product in z.products:
        if product.uses > 1:
            _join(parts, z, product)
    once = [Placed(p, p.weights, p.select) for p in z.products if p.uses == 1]
    biases = []
    for bias in z.biases:
        root, places = root_of(bias.weights)
        for i, part in enumerate(parts):
            columns = part.of_columns(places[bias.select])
            # Of an element in several columns the block of weights has no place.
            if columns is not None and len(np.unique(columns)) == len(columns):
                placed = Placed(bias, root, columns)
                parts[i] = dataclasses.replace(part, biases=(*part.biases, placed))
                break
        else:
            biases.append(Placed(bias, bias.weights, bias.select))
    if once or biases:
        parts.append(Part(z.variable, np.arange(z.size)[None], tuple(once), tuple(biases)))
    return parts


def _join(parts: list[Part], z: PreActivation, product: Product) -> None:
    """Adds a product of several vectors to the part that has its uses, or as a new part."""
    uses, columns = np.divmod(product.select, product.num_columns)
    for i, part in enumerate(parts):
        common, numbers = part.of_columns(columns), np.arange(part.count)[:, None]
        same = np.all((uses[part.elements] == numbers) | (part.elements < 0))
        if product.uses == part.count and same and common is not None:
            placed = Placed(product, product.weights, common)
            parts[i] = dataclasses.replace(part, products=(*part.products, placed))
            return
    present, places = np.unique(columns, return_inverse=True)
    elements = np.full((product.uses, len(present)), -1)
    elements[uses, places] = np.arange(z.size)
    placed = Placed(product, product.weights, present)
    parts.append(Part(z.variable, elements, (placed,), ()))


def _roots(prefix: Sequence[Equation]) -> Callable[[Variable], tuple[Variable, np.ndarray]]:
    """Parameter-only value -> the one that its elements are copies of, and which of its elements."""
    makers = {v: equation for equation in prefix for v in equation.outputs}

    def root_of(value: Variable) -> tuple[Variable, np.ndarray]:
        places = np.arange(math.prod(value.shape))
        while (maker := makers.get(value)) is not None and maker.name in MOVES_ONE:
            source = maker.inputs[0]
            if not isinstance(source, Variable) or not has_gradient(source):
                break
            numbers = np.arange(math.prod(source.shape)).reshape(source.shape)
            places = move(maker, [numbers])[0].reshape(-1)[places]
            value = source
        return value, places

    return root_of


@dataclasses.dataclass(frozen=True, eq=False)
class _ProductUse:
    """W^T a + b: parts of pre-activations that share a, side by side.

    Attributes:
      parts: at least one, all with as many uses.
    """

    parts: tuple[Part, ...]

    @property
    def count(self) -> int:
        return self.parts[0].count

    @property
    def signature(self) -> tuple[Any, ...]:
        rows = list(self._rows())
        of_parts = (
            (
                part.size,
                *(
                    (
                        p.weights,
                        p.term.weight_axes,
                        rows.index(p.term.data_key),
                        p.columns.tobytes(),
                    )
                    for p in part.products
                ),
                *((b.weights, b.term.sign, b.columns.tobytes()) for b in part.biases),
            )
            for part in self.parts
        )
        return ("product", tuple(p.input_size for p in self._vectors()), *of_parts)

    @property
    def input_size(self) -> int:
        return max(stop for _, stop in self._rows().values())

    @property
    def output_size(self) -> int:
        return sum(part.size for part in self.parts)

    def sources(self) -> list[Variable]:
        return [part.z for part in self.parts]

    def weights(self) -> list[Variable]:
        return list(dict.fromkeys(v for _, of_part in self.weights_of_columns() for v in of_part))

    def weights_of_columns(self) -> list[tuple[int, list[Variable]]]:
        return [
            (part.size, [p.weights for p in (*part.products, *part.biases)]) for part in self.parts
        ]

    def reads(self) -> list[Variable]:
        return [product.data for product in self._vectors()]

    def _vectors(self) -> list[Product]:
        """For each input a product that reads it."""
        return list({p.term.data_key: p.term for p in self.parts[0].products}.values())

    def _rows(self) -> dict[Any, tuple[int, int]]:
        """For each input by its key, and the biases by None, its first row and its end."""
        rows: dict[Any, tuple[int, int]] = {}
        start = 0
        for product in self._vectors():
            rows[product.data_key] = (start, start + product.input_size)
            start += product.input_size
        if self.parts[0].biases:
            rows[None] = (start, start + 1)
        return rows

    def inputs(self, environment: Environment) -> Array:
        dtype = self.parts[0].z.dtype
        parts = [p.inputs(environment[p.data]).astype(dtype) for p in self._vectors()]
        if self.parts[0].biases:
            parts.append(jnp.ones((self.count, 1), dtype))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)

    def derivative(self, derivatives: Mapping[Variable, Matrix], environment: Environment) -> Group:
        whole = side_by_side([derivatives[part.z] for part in self.parts])
        if self.count == 1:
            return dataclasses.replace(whole, values=whole.values[None])
        whole = whole.columns_at(self._elements().reshape(-1))
        return Shared(dataclasses.replace(whole, values=whole.values[None]), self.count)

    def reached(self, reach: Mapping[Variable, np.ndarray]) -> np.ndarray:
        whole = np.concatenate([reach[part.z] for part in self.parts], axis=1)
        elements = self._elements()
        return np.any(whole[:, elements] & (elements >= 0), axis=1)

    def met(self, environment: Environment) -> Array:
        return self.inputs(environment)

    def cotangents_of(self, taps: Mapping[Variable, Array]) -> Array:
        parts = [taps[part.z] for part in self.parts]
        whole = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
        whole = take(whole, self._elements().reshape(-1), axis=-1)
        return whole.reshape(*whole.shape[:-1], self.count, -1)

    def gradient(self, met: Array, cotangents: Array) -> Array:
        steps, lanes, uses, _ = met.shape
        together = [x.reshape(steps, lanes * uses, -1) for x in (met, cotangents)]
        return jnp.einsum("kbm,kbg->mg", *together)

    def _elements(self) -> np.ndarray:
        """The element that each column is in each use, of all sources side by side, [count, g]."""
        starts = np.cumsum([0, *(math.prod(part.z.shape) for part in self.parts)])
        return np.concatenate(
            [
                np.where(part.elements >= 0, part.elements + start, -1)
                for part, start in zip(self.parts, starts)
            ],
            axis=1,
        )

    def nonzero(self, masks: Mapping[Variable, np.ndarray]) -> np.ndarray | None:
        if not any(weights in masks for weights in self.weights()):
            return None

        def mask_of(weights: Variable) -> np.ndarray:
            return masks.get(weights, np.ones(weights.shape, bool))

        rows = self._rows()
        whole = np.zeros((self.input_size, self.output_size), bool)
        for part, columns in self._columns():
            for p in part.products:
                of_weights = p.term.block(mask_of(p.weights))[:, p.columns]
                whole[slice(*rows[p.term.data_key]), columns] |= of_weights
            for b in part.biases:
                whole[slice(*rows[None]), columns] |= mask_of(b.weights).reshape(-1)[b.columns]
        return None if whole.all() else whole

    def cotangents(self, block: Array) -> list[tuple[Variable, Array]]:
        rows = self._rows()
        # One parameter may stand in several places: their gradients are combined.
        products: dict[Any, list[tuple[Placed, int]]] = {}
        biases: dict[Any, list[tuple[Placed, int]]] = {}
        for part, columns in self._columns():
            for p in part.products:
                place = (p.weights, p.term.weight_axes, p.term.data_key)
                products.setdefault(place, []).append((p, columns.start))
            for b in part.biases:
                biases.setdefault((b.weights, b.term.sign), []).append((b, columns.start))
        result = []
        for placed in products.values():
            term: Product = placed[0][0].term
            of_term = block[slice(*rows[term.data_key])]
            whole = _spread(of_term, [(p.columns, start) for p, start in placed], term.num_columns)
            result.append((term.weights, term.from_block(whole)))
        for (weights, sign), placed in biases.items():
            of_biases = block[slice(*rows[None])]
            selections = [(b.columns, start) for b, start in placed]
            whole = _spread(of_biases, selections, math.prod(weights.shape))
            result.append((weights, sign * whole.reshape(weights.shape)))
        return result

    def _columns(self) -> list[tuple[Part, slice]]:
        """Each part and its columns in the block of weights."""
        stops = np.cumsum([part.size for part in self.parts])
        return [(part, slice(stop - part.size, stop)) for part, stop in zip(self.parts, stops)]


@dataclasses.dataclass(frozen=True, eq=False)
class _ScalingUse:
    """w * v, element by element: D is that by the pre-activation times diag(v).

    Attributes:
      z: the pre-activation.
      term: the term.
    """

    z: Variable
    term: Scaling

    count = 1
    input_size = 1

    @property
    def signature(self) -> tuple[Any, ...]:
        return "scaling", self.term.weights, self.term.select.tobytes()

    @property
    def output_size(self) -> int:
        return len(self.term.select)

    def sources(self) -> list[Variable]:
        return [self.z]

    def weights(self) -> list[Variable]:
        return [self.term.weights]

    def weights_of_columns(self) -> list[tuple[int, list[Variable]]]:
        return [(self.output_size, self.weights())]

    def reads(self) -> list[Variable]:
        return [self.term.data]

    def inputs(self, environment: Environment) -> Array:
        return jnp.ones((1, 1), self.z.dtype)

    def derivative(self, derivatives: Mapping[Variable, Matrix], environment: Environment) -> Group:
        vector = self.term.vector(environment[self.term.data])
        matrix = derivatives[self.z].scale_columns(vector)
        return dataclasses.replace(matrix, values=matrix.values[None])

    def reached(self, reach: Mapping[Variable, np.ndarray]) -> np.ndarray:
        return reach[self.z]

    def met(self, environment: Environment) -> Array:
        vector: Array = self.term.vector(environment[self.term.data])
        return vector[None]

    def cotangents_of(self, taps: Mapping[Variable, Array]) -> Array:
        return taps[self.z][:, :, None]

    def gradient(self, met: Array, cotangents: Array) -> Array:
        return jnp.einsum("kbtg,kbtg->g", met, cotangents)[None]

    def nonzero(self, masks: Mapping[Variable, np.ndarray]) -> np.ndarray | None:
        if self.term.weights not in masks:
            return None
        mask: np.ndarray = self.term.vector(masks[self.term.weights])
        return None if mask.all() else mask[None]

    def cotangents(self, block: Array) -> list[tuple[Variable, Array]]:
        weights = self.term.weights
        whole = _spread(block, [(self.term.select, 0)], math.prod(weights.shape))
        return [(weights, whole.reshape(weights.shape))]


@dataclasses.dataclass(frozen=True, eq=False)
class _OpaqueUse:
    """A value of no known structure: the whole of it is differentiated.

    Attributes:
      value: parameter-only.
    """

    value: Variable

    count = 1
    input_size = 1

    @property
    def signature(self) -> tuple[Any, ...]:
        return "opaque", self.value

    @property
    def output_size(self) -> int:
        return math.prod(self.value.shape)

    def sources(self) -> list[Variable]:
        return [self.value]

    def weights(self) -> list[Variable]:
        return [self.value]

    def weights_of_columns(self) -> list[tuple[int, list[Variable]]]:
        return [(self.output_size, self.weights())]

    def reads(self) -> list[Variable]:
        return []

    def inputs(self, environment: Environment) -> Array:
        return jnp.ones((1, 1), self.value.dtype)

    def derivative(self, derivatives: Mapping[Variable, Matrix], environment: Environment) -> Group:
        matrix = derivatives[self.value]
        return dataclasses.replace(matrix, values=matrix.values[None])

    def reached(self, reach: Mapping[Variable, np.ndarray]) -> np.ndarray:
        return reach[self.value]

    def met(self, environment: Environment) -> Array:
        return self.inputs(environment)

    def cotangents_of(self, taps: Mapping[Variable, Array]) -> Array:
        # Such a value is live: the loss is differentiated by it directly.
        return jnp.zeros((1, 1, 1, self.output_size), self.value.dtype)

    def gradient(self, met: Array, cotangents: Array) -> Array:
        return jnp.zeros((1, self.output_size), self.value.dtype)

    def nonzero(self, masks: Mapping[Variable, np.ndarray]) -> np.ndarray | None:
        return masks[self.value].reshape(1, -1) if self.value in masks else None

    def cotangents(self, block: Array) -> list[tuple[Variable, Array]]:
        return [(self.value, block.reshape(self.value.shape))]


@dataclasses.dataclass(frozen=True, eq=False)
class _UseInLoop:
    """A use in every iteration of a loop.

    Of what an iteration reads and makes, environment, derivatives and taps hold the values of all
    iterations, one below the other.

    Attributes:
      use: in one iteration.
      length: the number of iterations.
    """

    use: Use
    length: int

    @property
    def count(self) -> int:
        return self.length * self.use.count

    @property
    def signature(self) -> tuple[Any, ...]:
        return self.use.signature

    @property
    def input_size(self) -> int:
        return self.use.input_size

    @property
    def output_size(self) -> int:
        return self.use.output_size

    def sources(self) -> list[Variable]:
        return self.use.sources()

    def weights(self) -> list[Variable]:
        return self.use.weights()

    def weights_of_columns(self) -> list[tuple[int, list[Variable]]]:
        return self.use.weights_of_columns()

    def reads(self) -> list[Variable]:
        return self.use.reads()

    def inputs(self, environment: Environment) -> Array:
        return self._of_all(lambda values, _: self.use.inputs(values), environment)

    def derivative(self, derivatives: Mapping[Variable, Matrix], environment: Environment) -> Group:
        def one(values: Environment, by_sources: list[Array]) -> Array:
            matrices = dict(zip(self.sources(), map(Dense, by_sources)))
            return self.use.derivative(matrices, values).dense()

        by_sources = [derivatives[v].values for v in self.sources()]
        return Dense(self._of_all(one, environment, by_sources))

    def reached(self, reach: Mapping[Variable, np.ndarray]) -> np.ndarray:
        return self.use.reached(reach)

    def met(self, environment: Environment) -> Array:
        return self._of_all(lambda values, _: self.use.met(values), environment)

    def cotangents_of(self, taps: Mapping[Variable, Array]) -> Array:
        def one(*of_sources: Array) -> Array:
            return self.use.cotangents_of(dict(zip(self.sources(), of_sources)))

        found = jax.vmap(one, in_axes=2, out_axes=2)(*(taps[v] for v in self.sources()))
        return found.reshape(*found.shape[:2], self.count, -1)

    def gradient(self, met: Array, cotangents: Array) -> Array:
        return self.use.gradient(met, cotangents)

    def nonzero(self, masks: Mapping[Variable, np.ndarray]) -> np.ndarray | None:
        return self.use.nonzero(masks)

    def cotangents(self, block: Array) -> list[tuple[Variable, Array]]:
        return self.use.cotangents(block)

    def _of_all(
        self, one: Callable[[Environment, Any], Array], environment: Environment, more: Any = ()
    ) -> Array:
        """[count, ...] of what one iteration has, [its count, ...], for the values of all of them."""

        def of_iteration(_: Any, values: list[Array], more: Any) -> Array:
            return one(dict(zip(self.reads(), values)), more)

        values = [environment[v] for v in self.reads()]
        found: Array = jax.vmap(of_iteration)(jnp.arange(self.length), values, more)
        return found.reshape(self.count, *found.shape[2:])


def _spread(block: Any, selections: Sequence[tuple[np.ndarray, int]], size: int) -> Any:
    """Columns of a gradient put back where they were selected from.

    Args:
      block: [m, columns].
      selections: for each part, its elements' places in the whole, and its first column.
      size: of the whole; the result is [m, size].
    """
    layers = [np.full(size, -1)]
    for select, column in selections:
        columns = np.arange(column, column + len(select))
        layer = next((x for x in layers if np.all(x[select] < 0)), None)
        if layer is None:
            layer = np.full(size, -1)
            layers.append(layer)
        layer[select] = columns
    terms = [take(block, layer, axis=-1) for layer in layers]
    return sum(terms[1:], terms[0])


@dataclasses.dataclass(frozen=True, eq=False)
class SitePlan:
    """One site: all uses of the same weights in a step.

    Attributes:
      uses: at least one, all of one signature.
      problem: why the weights have no structure, if they have none.
    """

    uses: tuple[Use, ...]
    problem: str | None = None

    @property
    def input_size(self) -> int:
        """The number m of rows of the block of weights."""
        return self.uses[0].input_size

    @property
    def output_size(self) -> int:
        """The number g of its columns."""
        return self.uses[0].output_size

    @property
    def count(self) -> int:
        """The number T of uses."""
        return sum(use.count for use in self.uses)

    def weights(self) -> list[Variable]:
        """The parameter-only values that the block of weights holds, each once."""
        return self.uses[0].weights()

    def weights_of_columns(self) -> list[tuple[int, list[Variable]]]:
        """From left to right how many of its columns hold which of these."""
        return self.uses[0].weights_of_columns()

    def jacobian(
        self, derivatives: Sequence[Mapping[Variable, Matrix]], environment: Environment
    ) -> SiteJacobian:
        """a and D of all uses, of one lane: [T, m], and T matrices n x g.

        Args:
          derivatives: of each block of rows of the new state, by every pre-activation and opaque value.
          environment: the values of a step.
        """
        inputs = _one_after_another([use.inputs(environment) for use in self.uses], axis=0)
        groups = stacked([_derivative(use, derivatives, environment) for use in self.uses])
        return SiteJacobian(inputs.astype(jax.tree.leaves(groups)[0].dtype), Terms(groups))

    def reached(self, reach: Mapping[Variable, np.ndarray]) -> np.ndarray | None:
        """Where D can be non-zero, [n, g], in any use; None if nothing is known.

        Args:
          reach: the same for pre-activations and opaque values, where it is known.
        """
        if not all(v in reach for use in self.uses for v in use.sources()):
            return None
        return np.any([use.reached(reach) for use in self.uses], axis=0)

    def met(self, environment: Environment) -> Array:
        """What the weights meet in all uses, see `Use.met`."""
        return _one_after_another([use.met(environment) for use in self.uses], axis=0)

    def gradient(self, met: Array, taps: Mapping[Variable, Array]) -> Array:
        """The sum over steps, lanes and uses, [m, g].

        Args:
          met: of the steps and lanes, [K, B, T, ...].
          taps: the loss's derivative by every pre-activation, [K, B, its size].
        """
        cotangents = _one_after_another([use.cotangents_of(taps) for use in self.uses], axis=2)
        return self.uses[0].gradient(met, cotangents)

    def nonzero(self, masks: Mapping[Variable, np.ndarray]) -> np.ndarray | None:
        """Which entries of the block of weights can be non-zero, see `Use.nonzero`."""
        return self.uses[0].nonzero(masks)

    def cotangents(self, block: Array) -> list[tuple[Variable, Array]]:
        """The gradient of each of `weights()`, from the gradient of the block, [m, g]."""
        return self.uses[0].cotangents(block)


def _derivative(
    use: Use, blocks: Sequence[Mapping[Variable, Matrix]], environment: Environment
) -> Group:
    """D of a use, in the same blocks of rows as the derivatives by its sources."""
    if len(blocks) == 1:
        return use.derivative(blocks[0], environment)
    if use.count > 1:
        sources = use.sources()
        whole = {v: plain(below_each_other([block[v] for block in blocks])) for v in sources}
        return use.derivative(whole, environment)
    parts = [use.derivative(block, environment) for block in blocks]
    return below_each_other([part for part in parts if isinstance(part, (Dense, Banded))])


def _one_after_another(parts: Sequence[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis)


def plan_sites(discovery: Discovery) -> tuple[SitePlan, ...]:
    """Puts together what has the same inputs, then all uses of the same weights."""
    uses = _uses(discovery, _roots(discovery.prefix))
    sites: dict[tuple[Any, ...], list[Use]] = {}
    for use in uses:
        sites.setdefault(use.signature, []).append(use)
    return tuple(
        SitePlan(tuple(of_site), _problem(of_site[0], discovery)) for of_site in sites.values()
    )


def _uses(discovery: Discovery, root_of: Callable[[Variable], Any]) -> list[Use]:
    groups: dict[tuple[Any, ...], list[Part]] = {}
    for z in discovery.pre_activations:
        for part in _parts(z, root_of):
            groups.setdefault(part.input_key, []).append(part)
    uses: list[Use] = [_ProductUse(tuple(members)) for members in groups.values()]
    uses += [
        _ScalingUse(z.variable, scaling)
        for z in discovery.pre_activations
        for scaling in z.scalings
    ]
    uses += map(_OpaqueUse, discovery.opaque)
    for inner in discovery.loops:
        inside = _uses(inner.discovery, root_of)
        uses += [_UseInLoop(use, inner.loop.length) for use in inside]
    return uses


def _problem(use: Use, discovery: Discovery) -> str | None:
    return (isinstance(use, _OpaqueUse) and discovery.opaque[use.value]) or None
