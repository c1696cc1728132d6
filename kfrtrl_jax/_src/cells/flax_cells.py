"""Unmodified recurrent cells of Flax, Linen or NNX. Flax is imported for them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from kfrtrl_jax._src.base import Cell, Key


def from_flax(
    module: Any,
    example_input: Any = None,
    *,
    rngs: Mapping[str, Key] | None = None,
    cut: Sequence[str] = (),
    **apply_kwargs: Any,
) -> Cell:
    """A Flax recurrent cell, unmodified, with its parameters in Flax's own structure.

    Args:
      module: one of
        - a Linen cell, such as `linen.LSTMCell(features=64)`: any Linen module with
          `initialize_carry(rng, input_shape)` and `__call__(carry, x) -> (carry, output)`;
        - an NNX cell, such as `nnx.LSTMCell(8, 64, rngs=nnx.Rngs(0))`: it keeps the parameters it was
          made with, whatever key `init` is given;
        - a function rngs -> NNX cell, such as `lambda rngs: nnx.LSTMCell(8, 64, rngs=rngs)`: then
          `init(key)` draws new parameters.
      example_input: one lane's input, an array or a `jax.ShapeDtypeStruct`, without a batch axis, as a
        lane is one sequence of the batch. Linen needs it to determine the shapes of parameters; an NNX
        cell needs it only if it has no `in_features`, the length of its input.
      rngs: for a Linen cell, the initial key of each random stream, by the stream's name, either typed,
        [], or raw, uint32[2]. As in Flax, "params" stands in for every stream without a key of its own.
        None means `{"params": jax.random.key(0)}` for a cell that draws random numbers, and no stream
        for any other cell. An NNX cell brings its own streams.
      cut: which of the variables that the cell keeps beside its parameters have no gradient and persist
        across sequences, see below: names of Linen collections, such as "batch_stats", or of classes of
        NNX variables, such as "BatchStat".
      **apply_kwargs: passed on to each call of the module.

    Returns:
      The cell. The params of a Linen cell are its "params" collection, those of an NNX cell the
      `nnx.State` of its `nnx.Param`s. The carry is that of the module, or a tuple if there is more to
      carry:

      - (carry, variables), with all other collections of a Linen cell by name, or all other variables
        of an NNX cell as an `nnx.State`. They are part of the state: their floats have a gradient
        through time, and a lane that starts anew starts with their initial values. Variables named in
        `cut` have no gradient, neither where they are read nor where they are written, and keep their
        values when a lane starts anew. The initial values are those of the NNX cell itself, or those
        that `module.init(jax.random.key(0), ...)` leaves in a Linen cell: after one call with an input
        of zeros, unless the cell asks `is_initializing()`.
      - (carry, variables, keys), for a Linen cell with random streams: the key of each stream by name,
        typed, []. Each step splits every key, draws from one half and carries the other.

      Keys, and the counters of NNX's streams, always persist across sequences, and every lane has its
      own keys.

    Raises:
      TypeError: if the module is none of these; or, when its step is traced, if a call of an NNX cell
        changes an `nnx.Param` or an attribute that is not an array, as the next step would not see it.
      ValueError: if a Linen module, or an NNX cell without `in_features`, comes without example_input;
        if a Linen module draws from a stream that has no key, if an NNX cell comes with rngs, if a key
        is not a PRNG key, or if cut names something that the cell does not have.
    """
    from flax import linen, nnx

    from kfrtrl_jax._src.cells import linen_cells, nnx_cells

    names = (cut,) if isinstance(cut, str) else tuple(cut)
    if isinstance(module, linen.Module):
        if example_input is None:
            raise ValueError(
                "a Linen cell needs example_input, one lane's input, to know its shapes"
            )
        return linen_cells.from_linen(module, example_input, rngs, names, apply_kwargs)
    if not (isinstance(module, nnx.Module) or callable(module)):
        raise TypeError(
            f"from_flax takes a Linen module, an NNX module or a function that makes one, "
            f"got {module!r}"
        )
    if rngs is not None:
        raise ValueError(
            "rngs is for Linen cells; an NNX cell keeps the streams that it was made with, such as "
            "nnx.Dropout(0.5, rngs=nnx.Rngs(0))"
        )
    make = (lambda rngs: module) if isinstance(module, nnx.Module) else module
    return nnx_cells.from_nnx(make, example_input, names, apply_kwargs)


def flax_optimized_lstm(*, input_size: int, hidden_size: int) -> Cell:
    """Flax's `linen.OptimizedLSTMCell`, unmodified."""
    from flax import linen

    x = jax.ShapeDtypeStruct((input_size,), jax.dtypes.canonicalize_dtype(float))
    return from_flax(linen.OptimizedLSTMCell(hidden_size), x)


def flax_gru(*, input_size: int, hidden_size: int) -> Cell:
    """Flax's `linen.GRUCell`, unmodified."""
    from flax import linen

    x = jax.ShapeDtypeStruct((input_size,), jax.dtypes.canonicalize_dtype(float))
    return from_flax(linen.GRUCell(hidden_size), x)
