"""Unmodified recurrent cells of Flax, Linen or NNX."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import linen, nnx
from flax.errors import InvalidRngError

from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.function import from_function, typed_key, without_gradient


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
        lane is one sequence of the batch. Linen needs it to determine the shapes of parameters; NNX
        cells do not.
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
      ValueError: if a Linen module comes without example_input or draws from a stream that has no key,
        if an NNX cell comes with rngs, if a key is not a PRNG key, or if cut names something that the
        cell does not have.
    """
    names = (cut,) if isinstance(cut, str) else tuple(cut)
    if isinstance(module, linen.Module):
        if example_input is None:
            raise ValueError(
                "a Linen cell needs example_input, one lane's input, to know its shapes"
            )
        return _from_linen(module, example_input, rngs, names, apply_kwargs)
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
    return _from_nnx(make, example_input, names, apply_kwargs)


def flax_optimized_lstm(*, input_size: int, hidden_size: int) -> Cell:
    """Flax's `linen.OptimizedLSTMCell`, unmodified."""
    x = jax.ShapeDtypeStruct((input_size,), jax.dtypes.canonicalize_dtype(float))
    return from_flax(linen.OptimizedLSTMCell(hidden_size), x)


def flax_gru(*, input_size: int, hidden_size: int) -> Cell:
    """Flax's `linen.GRUCell`, unmodified."""
    x = jax.ShapeDtypeStruct((input_size,), jax.dtypes.canonicalize_dtype(float))
    return from_flax(linen.GRUCell(hidden_size), x)


def _from_linen(
    module: linen.Module,
    example_input: Any,
    rngs: Mapping[str, Key] | None,
    cut: tuple[str, ...],
    apply_kwargs: dict[str, Any],
) -> Cell:
    _require_cell(module)
    shape = jax.numpy.shape(example_input)
    dtype = jax.numpy.result_type(example_input)
    given = {name: typed_key(f'rngs["{name}"]', key) for name, key in (rngs or {}).items()}

    def first_state(key: Key) -> Any:
        return getattr(module, "initialize_carry")(key, shape)  # noqa: B009

    def variables(key: Key) -> Any:
        x = jax.numpy.zeros(shape, dtype)
        return module.init({**given, "params": key}, first_state(key), x, **apply_kwargs)

    key = jax.random.key(0)
    shapes = dict(jax.eval_shape(variables, key))
    params_shape = shapes.pop("params", {})
    collections = sorted(shapes)
    _require_known(cut, collections, "collection")

    def apply(params: Any, others: Any, keys: Any, state: Any, x: Any) -> tuple[Any, Any]:
        """((state, output), collections)."""
        everything = {"params": params, **others}
        if not collections:
            return module.apply(everything, state, x, rngs=keys, **apply_kwargs), {}
        result: Any = module.apply(
            everything, state, x, rngs=keys, mutable=collections, **apply_kwargs
        )
        return result

    def stream_without_key(keys: dict[str, Key]) -> str | None:
        x = jax.ShapeDtypeStruct(shape, dtype)
        try:
            jax.eval_shape(apply, params_shape, shapes, keys, jax.eval_shape(first_state, key), x)
        except InvalidRngError as error:
            name = re.search('PRNG for "(.*?)"', str(error))
            if name is None:
                raise
            return name[1]
        return None

    streams = given
    missing = stream_without_key(streams)
    if missing is not None and rngs is None:
        streams = {"params": key}
        missing = stream_without_key(streams)
    if missing is not None:
        named = "".join(f'"{name}": ..., ' for name in given)
        raise ValueError(
            f'{type(module).__name__} draws from the random stream "{missing}", which has no key; pass '
            f'rngs={{{named}"{missing}": jax.random.key(0)}} to from_flax'
        )
    # Computed once, as every restart calls initial_carry.
    first: dict[str, Any] = {}
    if collections:
        first = jax.jit(lambda: {name: variables(key)[name] for name in collections})()

    def pack(state: Any, others: Any, keys: Any) -> Any:
        if streams:
            return state, others, keys
        return (state, others) if collections else state

    def unpack(carry: Any) -> tuple[Any, Any, Any]:
        if streams:
            state, others, keys = carry
            return state, others, keys
        return (*carry, {}) if collections else (carry, {}, {})

    def without_cut_gradients(others: Any) -> Any:
        return {k: without_gradient(v) if k in cut else v for k, v in others.items()}

    def init(key: Key) -> Any:
        return variables(key).get("params", {})

    def initial_carry() -> Any:
        return pack(first_state(key), first, streams)

    def step(params: Any, carry: Any, x: Any) -> tuple[Any, Array]:
        state, others, keys = unpack(carry)
        halves = {name: jax.random.split(key) for name, key in keys.items()}
        drawn_from = {name: half[1] for name, half in halves.items()}
        (state, output), others = apply(params, without_cut_gradients(others), drawn_from, state, x)
        keys = {name: half[0] for name, half in halves.items()}
        return pack(state, without_cut_gradients(others), keys), output

    def restart(carry: Any) -> Any:
        _, others, keys = unpack(carry)
        return pack(first_state(key), {**first, **{name: others[name] for name in cut}}, keys)

    return from_function(step, init, initial_carry)._replace(restart=restart if cut else None)


def _from_nnx(
    make: Callable[[nnx.Rngs], nnx.Module],
    example_input: Any,
    cut: tuple[str, ...],
    apply_kwargs: dict[str, Any],
) -> Cell:
    first = make(nnx.Rngs(0))
    _require_cell(first)
    # The graph of the cell before its first call does not depend on the key.
    graph, _, others = _split(first)
    has_others = bool(jax.tree.leaves(others))
    kinds = {
        type(variable).__name__
        for variable in jax.tree.leaves(others, is_leaf=_is_variable)
        if _is_variable(variable) and not isinstance(variable, nnx.RngState)
    }
    _require_known(cut, sorted(kinds), "kind of variable")
    known = example_input is not None
    shape = jax.numpy.shape(example_input) if known else (getattr(first, "in_features"),)  # noqa: B009

    def is_cut(variable: Any) -> bool:
        return _is_variable(variable) and type(variable).__name__ in cut

    def without_cut_gradients(state: Any) -> Any:
        return jax.tree.map(
            lambda v: without_gradient(v) if is_cut(v) else v, state, is_leaf=_is_variable
        )

    def init(key: Key) -> Any:
        return _split(make(nnx.Rngs(key)))[1]

    def initial_carry() -> Any:
        carry = getattr(first, "initialize_carry")(shape, rngs=nnx.Rngs(0))  # noqa: B009
        return (carry, others) if has_others else carry

    def step(params: Any, carry: Any, x: Any) -> tuple[Any, Array]:
        variables = others
        if has_others:
            carry, variables = carry
        cell = nnx.merge(graph, _copied(params), _copied(without_cut_gradients(variables)))
        carry, output = cell(carry, x, **apply_kwargs)
        new_graph, new_params, variables = _split(cell)
        _require_unchanged(first, graph == new_graph, params, new_params)
        if has_others:
            carry = (carry, without_cut_gradients(variables))
        return carry, output

    def restart(carry: Any) -> Any:
        fresh, _ = initial_carry()
        variables = jax.tree.map(
            lambda now, new: now if is_cut(now) or isinstance(now, nnx.RngState) else new,
            carry[1],
            others,
            is_leaf=_is_variable,
        )
        return fresh, variables

    cell = from_function(step, init, initial_carry)
    return cell._replace(restart=restart if has_others else None)


def _require_cell(module: Any) -> None:
    for name in ("initialize_carry", "__call__"):
        if not hasattr(module, name):
            raise TypeError(f"{type(module).__name__} is not a recurrent cell: it has no {name}")


def _require_known(cut: tuple[str, ...], names: Sequence[str], what: str) -> None:
    for name in cut:
        if name not in names:
            there = ", ".join(names) or "none"
            raise ValueError(f'cut names "{name}", but the cell has no such {what}; it has {there}')


def _require_unchanged(module: Any, same_graph: bool, params: Any, new_params: Any) -> None:
    """Refuses changes that the next step would not see."""
    name = type(module).__name__
    if not same_graph:
        raise TypeError(
            f"a call of {name} adds a variable or changes an attribute that is not an array; keep "
            f"whatever changes in an nnx.Variable that __init__ makes"
        )
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(new_params)):
        if old is not new:
            raise TypeError(
                f"a call of {name} changes an nnx.Param; keep whatever a step changes in another kind "
                f"of nnx.Variable"
            )


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    """(graph, parameters, all other variables), unaffected by later changes of the module."""
    parts: Any = nnx.split(module, nnx.Param, ...)
    graph, params, others = parts
    return graph, _copied(params), _copied(others)


def _copied(state: Any) -> Any:
    """The same arrays in new variables: Flax's split and merge share variables with the module."""
    return jax.tree.map(lambda leaf: leaf, state)
