"""Terms of pre-activations by the data that they read: what can stand side by side in one matrix."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kfrtrl_jax._src.linearization.discovery import PreActivation
from kfrtrl_jax._src.linearization.patterns import MOVES_ONE, move
from kfrtrl_jax._src.linearization.program import Equation, Variable, has_gradient
from kfrtrl_jax._src.linearization.weight_terms import Product


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


def parts_of(z: PreActivation, root_of: Callable[[Variable], Any]) -> list[Part]:
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


def roots(prefix: Sequence[Equation]) -> Callable[[Variable], tuple[Variable, np.ndarray]]:
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
