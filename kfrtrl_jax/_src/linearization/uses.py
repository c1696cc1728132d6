"""Uses of weights: where a step meets them, once or several times alike.

Pre-activations with the same inputs share a. They are put together as far as possible: a cell
written with a matrix for every gate and one for every input costs what the fused one does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.linearization.parts import Part, Placed
from kfrtrl_jax._src.linearization.program import Environment, Variable
from kfrtrl_jax._src.linearization.weight_terms import Product, Scaling
from kfrtrl_jax._src.matrices import Dense, Group, Matrix, Shared, side_by_side, take

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


@dataclasses.dataclass(frozen=True, eq=False)
class ProductUse:
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
class ScalingUse:
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
class OpaqueUse:
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
class UseInLoop:
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
