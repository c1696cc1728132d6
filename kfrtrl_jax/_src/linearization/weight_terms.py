"""How parameters meet data: products, biases and element-wise weights, terms of pre-activations."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.linearization.program import Constant, Equation, Role, Variable
from kfrtrl_jax._src.linearization.rewrites import MAX_USES
from kfrtrl_jax._src.matrices import Index, take

Array = jax.Array

TOO_OFTEN = f"a step uses it more than {MAX_USES} times"
_NO_TERM = "it is not a product of parameters with data, nor a sum"

# A product of several vectors is followed if, as a product of one, its matrix has no more entries.
_MAX_ENTRIES = 2**26


class Product(NamedTuple):
    """The term W^T a of a pre-activation: of one vector a, or of several by the same W.

    A convolution is one product for every position: of the patch there.

    Attributes:
      weights: the parameter-only operand.
      data: the other operand.
      weight_axes: the order of the operand's axes that reshapes it to [m, columns].
      places: static: the element of the data that each row of W meets in each use, [uses, m]; -1 for
        none, which is a 0.
      num_columns: of W.
      select: [g]: which of the products, [uses * columns], make the pre-activation.
    """

    weights: Variable
    data: Variable
    weight_axes: tuple[int, ...]
    places: Index
    num_columns: int
    select: np.ndarray

    @property
    def uses(self) -> int:
        """How many vectors are multiplied."""
        return len(self.places.array)

    @property
    def input_size(self) -> int:
        """The size m of each."""
        return self.places.array.shape[1]

    @property
    def data_key(self) -> tuple[Variable, Index]:
        """A key that is equal iff two products read the same vectors."""
        return self.data, self.places

    def inputs(self, value: Array) -> Array:
        """The vectors, [uses, m], from the data's value."""
        chosen = take(value.reshape(-1), self.places.array.reshape(-1), axis=-1)
        return chosen.reshape(self.places.array.shape)

    def vector(self, value: Any) -> Any:
        """What `matrix` multiplies, [r]: the one vector, or all of the data where there are several.

        Args:
          value: of the data, or its pattern of indices.
        """
        flat = value.reshape(-1)
        if self.uses > 1:
            return flat
        (places,) = self.places.array
        return flat[places] if isinstance(flat, np.ndarray) else take(flat, places, axis=-1)

    def matrix(self, value: Array) -> Array:
        """[r, g] from the operand's value; a convolution's as if it were a matrix."""
        columns = self.block(value)
        if self.uses > 1:
            rows = self._rows_met()
            columns = take(columns, rows.reshape(-1), axis=-2).reshape(*rows.shape, -1)
            columns = jnp.moveaxis(columns, 0, 1).reshape(rows.shape[1], -1)
        return take(columns, self.select, axis=-1)

    def nonzero(self, mask: np.ndarray | None) -> np.ndarray:
        """Where `matrix` can be non-zero, [r, g], from where the operand can (everywhere if None)."""
        columns = np.ones((self.input_size, self.num_columns), bool)
        if mask is not None:
            columns = self.block(mask)
        if self.uses > 1:
            rows = self._rows_met()
            columns = (rows >= 0)[..., None] & columns[np.maximum(rows, 0)]
            columns = np.moveaxis(columns, 0, 1).reshape(rows.shape[1], -1)
        return columns[:, self.select]

    def block(self, value: Any) -> Any:
        """W, [m, columns], from the operand's value or a mask of it."""
        return value.transpose(self.weight_axes).reshape(self.input_size, self.num_columns)

    def from_block(self, block: Array) -> Array:
        """The operand's value from W."""
        shape = [self.weights.shape[axis] for axis in self.weight_axes]
        return block.reshape(shape).transpose(np.argsort(self.weight_axes))

    def _rows_met(self) -> np.ndarray:
        """The row of W that each element of the data meets in each use, [uses, size]; -1 for none."""
        met = np.full((self.uses, math.prod(self.data.shape)), -1)
        use, row = np.nonzero(self.places.array >= 0)
        met[use, self.places.array[use, row]] = row
        return met


def _elements(value: Any, select: np.ndarray) -> Any:
    """Elements of an array of any shape; a pattern is NumPy's and stays so."""
    flat = value.reshape(-1)
    return flat[select] if isinstance(value, np.ndarray) else take(flat, select, axis=-1)


class Bias(NamedTuple):
    """The term b (or -b) of a pre-activation; select: [g], the elements of b."""

    weights: Variable
    sign: int
    select: np.ndarray


class Scaling(NamedTuple):
    """The term w * v of a pre-activation, element by element; select: [g], the elements of both."""

    weights: Variable
    data: Variable
    select: np.ndarray

    def vector(self, value: Any) -> Any:
        """[g] from the value of the weights or of the data, or its pattern of indices."""
        return _elements(value, self.select)


class Rest(NamedTuple):
    """The term v of a pre-activation that is data alone, as in v + b; select: [g], its elements."""

    data: Variable
    select: np.ndarray

    def vector(self, value: Any) -> Any:
        """[g] from the data's value, or its pattern of indices."""
        return _elements(value, self.select)


Term = Product | Bias | Scaling | Rest


def term_of(equation: Equation) -> Term | str:
    """The term that an equation makes in which parameters meet data, or why it makes none."""
    if equation.name == "scan":
        return (
            f"with its {equation.params['length']} iterations a step would use it more than "
            f"{MAX_USES} times"
        )
    if len(equation.inputs) != 2 or len(equation.outputs) != 1:
        return _NO_TERM
    first, second = equation.inputs
    if isinstance(first, Constant) or isinstance(second, Constant):
        return _NO_TERM
    parameters, data = (first, second) if first.role is Role.PARAMETER else (second, first)
    if equation.name == "dot_general":
        return _product(equation, parameters, data)
    if equation.name == "conv_general_dilated":
        return _convolution(equation, parameters, data)
    if equation.name not in ("add", "add_any", "sub", "mul") or (
        equation.name == "sub" and parameters is first
    ):
        return _NO_TERM
    if parameters.shape != equation.outputs[0].shape or data.shape != parameters.shape:
        return "its operands differ in shape"
    everything = np.arange(math.prod(parameters.shape))
    if equation.name == "mul":
        return Scaling(parameters, data, everything)
    return Bias(parameters, -1 if equation.name == "sub" else 1, everything)


def _product(equation: Equation, weights: Variable, data: Variable) -> Product | str:
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    weights_first = equation.inputs[0] is weights
    weight_axes, data_axes = (left, right) if weights_first else (right, left)
    weight_batch, data_batch = (
        (left_batch, right_batch) if weights_first else (right_batch, left_batch)
    )
    if any(data.shape[axis] != 1 for axis in data_batch):
        return "it multiplies several matrices with several vectors"
    free = [a for a in range(len(weights.shape)) if a not in (*weight_axes, *weight_batch)]
    data_free = [a for a in range(len(data.shape)) if a not in (*data_axes, *data_batch)]
    columns = math.prod(weights.shape[axis] for axis in free)
    places = _numbers(data.shape).transpose(*data_free, *data_batch, *data_axes)
    places = places.reshape(-1, math.prod(data.shape[axis] for axis in data_axes))
    results = _numbers((len(places), columns))
    return _followed(
        Product(
            weights,
            data,
            (*weight_axes, *weight_batch, *free),
            Index(places),
            columns,
            (results.T if weights_first else results).reshape(-1),
        )
    )


def _convolution(equation: Equation, weights: Variable, data: Variable) -> Product | str:
    params = equation.params
    if equation.inputs[0] is weights:
        return "it is not the kernel of that convolution"
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        return "that convolution is in groups"
    of_data, of_weights, of_result = params["dimension_numbers"]
    out, into, *spatial = of_weights
    patches = _patches(
        _numbers(data.shape).transpose(of_data),
        [weights.shape[axis] for axis in spatial],
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
    )
    # [images, columns, *positions]; the patches of an image follow one another.
    shape = [equation.outputs[0].shape[axis] for axis in of_result]
    results = np.moveaxis(_numbers((shape[0], *shape[2:], shape[1])), -1, 1)
    return _followed(
        Product(
            weights,
            data,
            (into, *spatial, out),
            Index(patches),
            weights.shape[out],
            results.transpose(np.argsort(of_result)).reshape(-1),
        )
    )


def _patches(
    numbers: np.ndarray, sizes: Any, strides: Any, padding: Any, dilation: Any, kernel_dilation: Any
) -> np.ndarray:
    """What each position of a convolution sees, [images * positions, features * window]; -1: nothing.

    Args:
      numbers: of the elements, [images, features, *spatial].
      sizes: of the window; this and the rest for every spatial axis.
      strides: of the positions.
      padding: before and after; a negative one cuts off.
      dilation: of the data.
      kernel_dilation: of the window.
    """
    count = len(sizes)
    for i, (by, (before, after)) in enumerate(zip(dilation, padding)):
        axis = 2 + i
        spread = np.full(
            [max((n - 1) * by + 1, 0) if a == axis else n for a, n in enumerate(numbers.shape)], -1
        )
        spread[(slice(None),) * axis + (slice(None, None, by),)] = numbers
        widths = [(0, 0)] * numbers.ndim
        widths[axis] = (max(before, 0), max(after, 0))
        padded = np.pad(spread, widths, constant_values=-1)
        stop = padded.shape[axis] - max(-after, 0)
        numbers = padded[(slice(None),) * axis + (slice(max(-before, 0), stop),)]
    reach = [(size - 1) * by + 1 for size, by in zip(sizes, kernel_dilation)]
    axes = tuple(range(2, 2 + count))
    windows = np.lib.stride_tricks.sliding_window_view(numbers, reach, axis=axes)
    steps = [slice(None, None, by) for by in (*strides, *kernel_dilation)]
    windows = np.moveaxis(windows[(slice(None), slice(None), *steps)], 1, 1 + count)
    return windows.reshape(math.prod(windows.shape[: 1 + count]), -1)


def _followed(product: Product) -> Product | str:
    """The product, or why it is too large."""
    if product.uses > 1 and math.prod(product.data.shape) * len(product.select) > _MAX_ENTRIES:
        return f"as one matrix it would have more than {_MAX_ENTRIES} entries"
    return product


def _numbers(shape: Any) -> np.ndarray:
    """The elements of an array of this shape, numbered."""
    return np.arange(math.prod(shape)).reshape(shape)
