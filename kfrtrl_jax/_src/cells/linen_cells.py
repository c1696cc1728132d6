"""Recurrent cells of Linen, see `flax_cells.from_flax`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax import linen
from flax.errors import InvalidRngError

from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.flax_checks import require_cell, require_known
from kfrtrl_jax._src.cells.function import from_function, typed_key, without_gradient


class _Bound(NamedTuple):
    """A Linen cell with what never changes of its calls.

    Attributes:
      module: the cell.
      shape: of one lane's input.
      dtype: of it.
      keys: of random streams, as given.
      options: other arguments of its calls.
    """

    module: linen.Module
    shape: tuple[int, ...]
    dtype: Any
    keys: Mapping[str, Key]
    options: Mapping[str, Any]

    def first_state(self, key: Key) -> Any:
        return getattr(self.module, "initialize_carry")(key, self.shape)  # noqa: B009

    def variables(self, key: Key) -> Any:
        """The parameters and the collections beside them, by name."""
        x = jax.numpy.zeros(self.shape, self.dtype)
        keys = {**self.keys, "params": key}
        return self.module.init(keys, self.first_state(key), x, **self.options)

    def apply(self, params: Any, collections: Any, keys: Any, state: Any, x: Any) -> Any:
        """((state, output), collections)."""
        everything = {"params": params, **collections}
        options: Any = {"rngs": keys, **self.options}
        if not collections:
            return self.module.apply(everything, state, x, **options), {}
        return self.module.apply(everything, state, x, mutable=sorted(collections), **options)


class _Carry(NamedTuple):
    """What a lane carries: the state, with the collections and the keys of random streams, if any.

    Attributes:
      collections: whether the module has any.
      streams: whether it draws from any.
    """

    collections: bool
    streams: bool

    def packed(self, state: Any, collections: Any, keys: Any) -> Any:
        if self.streams:
            return state, collections, keys
        return (state, collections) if self.collections else state

    def parts(self, carry: Any) -> tuple[Any, Any, Any]:
        """(the state, the collections, the keys)."""
        if self.streams:
            state, collections, keys = carry
            return state, collections, keys
        return (*carry, {}) if self.collections else (carry, {}, {})


def from_linen(
    module: linen.Module,
    example_input: Any,
    rngs: Mapping[str, Key] | None,
    cut: tuple[str, ...],
    apply_kwargs: dict[str, Any],
) -> Cell:
    """The cell of a Linen module; the arguments are those of `from_flax`."""
    require_cell(module)
    given = {name: typed_key(f'rngs["{name}"]', key) for name, key in (rngs or {}).items()}
    shape, dtype = jax.numpy.shape(example_input), jax.numpy.result_type(example_input)
    bound = _Bound(module, shape, dtype, given, apply_kwargs)
    key = jax.random.key(0)
    shapes = dict(jax.eval_shape(bound.variables, key))
    params_shape = shapes.pop("params", {})
    require_known(cut, sorted(shapes), "collection")
    streams = _streams(bound, params_shape, shapes, needs_all=rngs is not None)
    carried = _Carry(bool(shapes), bool(streams))
    # Computed once, as every restart calls initial_carry.
    first: dict[str, Any] = {}
    if shapes:
        first = jax.jit(lambda: {name: bound.variables(key)[name] for name in sorted(shapes)})()

    def without_cut_gradients(collections: Any) -> Any:
        return {k: without_gradient(v) if k in cut else v for k, v in collections.items()}

    def init(key: Key) -> Any:
        return bound.variables(key).get("params", {})

    def initial_carry() -> Any:
        return carried.packed(bound.first_state(key), first, streams)

    def step(params: Any, carry: Any, x: Any) -> tuple[Any, Array]:
        state, collections, keys = carried.parts(carry)
        halves = {name: jax.random.split(key) for name, key in keys.items()}
        drawn_from = {name: half[1] for name, half in halves.items()}
        (state, output), collections = bound.apply(
            params, without_cut_gradients(collections), drawn_from, state, x
        )
        keys = {name: half[0] for name, half in halves.items()}
        return carried.packed(state, without_cut_gradients(collections), keys), output

    def restart(carry: Any) -> Any:
        _, collections, keys = carried.parts(carry)
        kept = {**first, **{name: collections[name] for name in cut}}
        return carried.packed(bound.first_state(key), kept, keys)

    return from_function(step, init, initial_carry)._replace(restart=restart if cut else None)


def _streams(bound: _Bound, params: Any, collections: Any, *, needs_all: bool) -> dict[str, Key]:
    """The keys of the random streams that a lane carries: those given, or that of initialization.

    Args:
      bound: the cell.
      params: shapes of the parameters.
      collections: shapes of the collections.
      needs_all: whether a stream without a key is refused at once.

    Raises:
      ValueError: naming the stream that has no key.
    """
    key = jax.random.key(0)

    def without_key(keys: dict[str, Key]) -> str | None:
        x = jax.ShapeDtypeStruct(bound.shape, bound.dtype)
        state = jax.eval_shape(bound.first_state, key)
        try:
            jax.eval_shape(bound.apply, params, collections, keys, state, x)
        except InvalidRngError as error:
            name = re.search('PRNG for "(.*?)"', str(error))
            if name is None:
                raise
            return name[1]
        return None

    streams = dict(bound.keys)
    missing = without_key(streams)
    if missing is not None and not needs_all:
        streams = {"params": key}
        missing = without_key(streams)
    if missing is not None:
        named = "".join(f'"{name}": ..., ' for name in bound.keys)
        name = type(bound.module).__name__
        raise ValueError(
            f'{name} draws from the random stream "{missing}", which has no key; pass '
            f'rngs={{{named}"{missing}": jax.random.key(0)}} to from_flax'
        )
    return streams
