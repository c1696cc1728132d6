"""Deep recurrent networks: cells on top of each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.function import output_shape
from kfrtrl_jax._src.cells.initializers import gaussian
from kfrtrl_jax._src.lanes import with_keys_folded

Norm = Literal["layer", "rms"]
Mix = Literal["linear", "glu"]

# Added to variances and mean squares.
_EPSILON = 1e-5


def stack(
    cells: Sequence[Cell],
    *,
    input_size: int,
    skip: bool = False,
    norm: Norm | None = None,
    mix: Mix | None = None,
    width: int | None = None,
) -> Cell:
    """A deep network: the output of each layer is the input of the next one at the same time step.

    Layer l turns its input x into norm(skip(x) + mix(y)), where y is the output of its cell on x; each
    of the three can be absent. With a linear recurrence as the cell, these are the layers of Orvieto et
    al. (2023, arXiv:2303.06349) and, with the norm last as here, of Zucchet et al. (2023,
    arXiv:2305.15947).

    The parameters are a tuple with an entry for each layer, a dictionary: "cell" holds those of the
    cell, "mix", "skip" and "norm" those of the parts that have any. The carry is the tuple of the
    cells' carries. A lane that starts anew does so by each cell's own `restart`. If a cell carries PRNG
    keys, the number of its layer is folded into them, so that layers made of the same cell draw
    different numbers.

    Args:
      cells: from the bottom to the top, any cells whose input and output are vectors.
      input_size: length of the input of the first one.
      skip: whether a layer's input is added to its output: as it is where the lengths are equal, else
        times a learned matrix "skip", [length of the input, length of the output].
      norm: "layer" for layer normalization with a learned scale and bias (Ba et al., 2016,
        arXiv:1607.06450), "rms" for division by the root mean square with a learned scale (Zhang and
        Sennrich, 2019, arXiv:1910.07467), None for neither.
      mix: "linear" for y -> A^T y + a, "glu" for the gated linear unit
        y -> (A^T y + a) * sigmoid(B^T y + b) (Dauphin et al., 2017, arXiv:1612.08083), None for y.
      width: length of the output of each layer with a mix; None for that of its cell's output.

    Raises:
      ValueError: if there are no cells, if norm or mix is unknown, if width is given without a mix, or
        if a cell cannot read the output of the layer below.
    """
    cells = tuple(cells)
    if not cells:
        raise ValueError("stack needs at least one cell")
    parts = _Parts(skip, norm, mix, width)
    layers, size = [], input_size
    for number, cell in enumerate(cells):
        layers.append(_Layer(cell, parts, size, number))
        size = layers[-1].output_size
    return _joined(layers)


def stack_of(
    make: Callable[[int], Cell],
    layers: int,
    *,
    input_size: int,
    skip: bool = False,
    norm: Norm | None = None,
    mix: Mix | None = None,
    width: int | None = None,
) -> Cell:
    """A `stack` of as many cells as asked for, each made for the length of the input that it reads.

    For example `stack_of(lambda size: lru(input_size=size, hidden_size=64), 4, input_size=10)`.

    Args:
      make: length of the input -> cell.
      layers: how many.
      input_size: length of the input of the first one.
      skip: as for `stack`, and so are the others.
      norm: see `stack`.
      mix: see `stack`.
      width: see `stack`.

    Raises:
      ValueError: if layers is less than 1, or where `stack` does.
    """
    bounds.require("[1, inf)", layers=layers)
    parts = _Parts(skip, norm, mix, width)
    made: list[_Layer] = []
    size = input_size
    for number in range(layers):
        made.append(_Layer(make(size), parts, size, number))
        size = made[-1].output_size
    return _joined(made)


class _Parts:
    """What each layer has beside its cell."""

    def __init__(self, skip: bool, norm: str | None, mix: str | None, width: int | None) -> None:
        if norm not in (None, "layer", "rms"):
            raise ValueError(f'norm must be "layer", "rms" or None, got {norm!r}')
        if mix not in (None, "linear", "glu"):
            raise ValueError(f'mix must be "linear", "glu" or None, got {mix!r}')
        if width is not None and mix is None:
            raise ValueError(
                f'width={width} is the length of the output of a mix; give mix="linear"'
            )
        self.skip, self.norm, self.mix, self.width = skip, norm, mix, width


class _Layer:
    """A cell and the parts around it, for an input of known length."""

    def __init__(self, cell: Cell, parts: _Parts, input_size: int, number: int) -> None:
        self.cell, self._parts, self._input_size, self._number = cell, parts, input_size, number
        self._cell_size = self._length_of_output()
        self.output_size = self._cell_size if parts.width is None else parts.width

    def _length_of_output(self) -> int:
        try:
            output = output_shape(self.cell, self._input_size)
        except (TypeError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(
                f"the cell of layer {self._number} cannot read its input, a vector of length "
                f"{self._input_size}: {first}"
            ) from error
        if getattr(output, "ndim", None) != 1:
            raise ValueError(
                f"the output of the cell of layer {self._number} must be a vector, got {output}"
            )
        return int(output.shape[0])

    def init(self, key: Key) -> dict[str, Any]:
        cell_key, mix_key, skip_key = jax.random.split(key, 3)
        params: dict[str, Any] = {"cell": self.cell.init(cell_key)}
        parts, size = self._parts, self.output_size
        if parts.mix is not None:
            columns = size if parts.mix == "linear" else 2 * size
            params["mix"] = {
                "weights": gaussian(mix_key, (self._cell_size, columns), 0.0),
                "bias": jnp.zeros(columns),
            }
        if parts.skip and self._input_size != size:
            params["skip"] = gaussian(skip_key, (self._input_size, size), 0.0)
        if parts.norm is not None:
            params["norm"] = {"scale": jnp.ones(size)}
        if parts.norm == "layer":
            params["norm"]["bias"] = jnp.zeros(size)
        return params

    def initial_carry(self) -> Any:
        return with_keys_folded(self.cell.initial_carry(), self._number)

    def restart(self, carry: Any) -> Any:
        return self.initial_carry() if self.cell.restart is None else self.cell.restart(carry)

    def step(self, params: dict[str, Any], carry: Any, x: Array) -> tuple[Any, Array]:
        carry, y = self.cell.step(params["cell"], carry, x)
        if "mix" in params:
            y = y @ params["mix"]["weights"] + params["mix"]["bias"]
        if self._parts.mix == "glu":
            value, gate = jnp.split(y, 2)
            y = value * jax.nn.sigmoid(gate)
        if self._parts.skip:
            y = y + (x @ params["skip"] if "skip" in params else x)
        return carry, _normalized(params["norm"], y) if "norm" in params else y


def _joined(layers: Sequence[_Layer]) -> Cell:
    def init(key: Key) -> tuple[dict[str, Any], ...]:
        keys = jax.random.split(key, len(layers))
        return tuple(layer.init(k) for layer, k in zip(layers, keys))

    def initial_carry() -> tuple[Any, ...]:
        return tuple(layer.initial_carry() for layer in layers)

    def step(
        params: Sequence[dict[str, Any]], carry: Sequence[Any], x: Array
    ) -> tuple[tuple[Any, ...], Array]:
        new = []
        for layer, own, state in zip(layers, params, carry, strict=True):
            state, x = layer.step(own, state, x)
            new.append(state)
        return tuple(new), x

    def restart(carry: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(layer.restart(state) for layer, state in zip(layers, carry, strict=True))

    own_restart = any(layer.cell.restart is not None for layer in layers)
    return Cell(init, initial_carry, step, restart if own_restart else None)


def _normalized(params: dict[str, Array], y: Array) -> Array:
    """Layer normalization, or without a bias division by the root mean square."""
    if "bias" not in params:
        return params["scale"] * (y * jax.lax.rsqrt(jnp.mean(y * y) + _EPSILON))
    centered = y - jnp.mean(y)
    deviation = jax.lax.rsqrt(jnp.mean(centered * centered) + _EPSILON)
    return params["scale"] * (centered * deviation) + params["bias"]
