"""Recurrent cells of Linen, see `flax_cells.from_flax`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen
from flax.errors import InvalidRngError

from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.flax_checks import require_cell, require_known
from kfrtrl_jax._src.cells.function import from_function, typed_key, without_gradient


def from_linen(
    module: linen.Module,
    example_input: Any,
    rngs: Mapping[str, Key] | None,
    cut: tuple[str, ...],
    apply_kwargs: dict[str, Any],
) -> Cell:
    """The cell of a Linen module; the arguments are those of `from_flax`."""
    require_cell(module)
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
    require_known(cut, collections, "collection")

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
