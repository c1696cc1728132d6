"""Recurrent cells of Equinox, unmodified."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax

from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.function import from_function, typed_key, without_gradient
from kfrtrl_jax._src.one_step import require_result, shown, signature


def from_equinox(
    module: Any,
    initial_carry: Callable[[], Any] | Any = None,
    *,
    key: Key | None = None,
    inference: bool | None = None,
    input_first: bool | None = None,
    cut: bool = False,
    **call_kwargs: Any,
) -> Cell:
    """An Equinox recurrent cell, unmodified. Needs Equinox: the extra `equinox`.

    Args:
      module: one of
        - an `equinox.Module`, such as `eqx.nn.GRUCell(8, 64, key=jax.random.key(0))`, called as
          module(carry, x) -> carry or (carry, output): it keeps the parameters it was made with,
          whatever key `init` is given;
        - the pair (module, state) that `eqx.nn.make_with_state` gives for a module with stateful
          layers, called as module(carry, x, state) -> (carry, state) or (carry, output, state);
        - a function key -> one of these, such as `lambda key: eqx.nn.GRUCell(8, 64, key=key)`: then
          `init(key)` draws new parameters. All but its float arrays are those of jax.random.key(0).
      initial_carry: () -> carry, or the carry itself: a pytree of arrays of one lane. None means zeros,
        for `eqx.nn.GRUCell` and `eqx.nn.LSTMCell`.
      key: for a module that draws random numbers, the initial key, typed, [], or raw, uint32[2]: each
        step splits the key, gives one half to the module as its argument `key` and carries the other.
        None means that the module gets no key.
      inference: if not None, what `eqx.nn.inference_mode` sets all flags `inference` of the module to.
      input_first: whether the module is called with (x, carry) instead of (carry, x). None means yes
        for `eqx.nn.GRUCell` and `eqx.nn.LSTMCell`, and no for others.
      cut: whether the state of stateful layers has no gradient and persists across sequences, see
        below.
      **call_kwargs: passed on to each call of the module.

    Returns:
      The cell. Its params are the module with nothing but its float arrays, as `eqx.filter` gives it.
      If the module returns no output, the output is its carry, or the first leaf of that: the h of
      `eqx.nn.LSTMCell`. The carry is that of the module, or a tuple if there is more to carry:

      - (carry, state), with the arrays of the `eqx.nn.State` in a tuple. Its floats have a gradient
        through time, and a lane that starts anew starts with their initial values; with `cut` they have
        no gradient, neither where they are read nor where they are written, and keep their values then.
      - (carry, state, key) for a module with a key, the state () if there is none. The key persists
        across sequences, and every lane has its own.

    Raises:
      ImportError: if Equinox is not installed.
      TypeError: if the module is none of these; or, when its step is traced, if it does not return the
        carry that it was given, in structure, shapes and types.
      ValueError: if initial_carry is missing, if key is no PRNG key or the module takes none, if the
        module has dropout that is on and no key, or if cut is set for a module without state.
    """
    eqx = import_equinox()
    make = maker(eqx, module, inference)
    params, static, state = make(jax.random.key(0))
    first = eqx.combine(params, static)
    key = None if key is None else typed_key("key", key)
    require_key(eqx, first, key)
    if cut and state is None:
        raise ValueError(f"cut is for stateful layers, but {type(first).__name__} has no state")
    if input_first is None:
        input_first = isinstance(first, (eqx.nn.GRUCell, eqx.nn.LSTMCell))
    if initial_carry is None:
        initial_carry = _zeros(eqx, first)

    def call(
        params: Any, carry: Any, x: Any, state: tuple[Any, ...], key: dict[str, Key]
    ) -> tuple[Any, Any, Any]:
        """(carry, output, state), with the state and the key only if there is one."""
        arguments = (x, carry) if input_first else (carry, x)
        result = eqx.combine(params, static)(*arguments, *state, **key, **call_kwargs)
        new_state = None
        if state:
            *results, new_state = result
            result = results[0] if len(results) == 1 else tuple(results)
        new, output = _carry_and_output(type(first).__name__, params, carry, result)
        return new, output, new_state

    return _cell(call, lambda key: make(key)[0], initial_carry, state, key, cut)


def _cell(
    call: Callable[..., tuple[Any, Any, Any]],
    init: Callable[[Key], Any],
    initial_carry: Callable[[], Any] | Any,
    first_state: Any,
    first_key: Key | None,
    cut: bool,
) -> Cell:
    """The cell with all that is to be carried in its carry."""
    make_carry = initial_carry if callable(initial_carry) else lambda: initial_carry
    first_leaves, structure = jax.tree.flatten(first_state)
    kept = without_gradient if cut else lambda tree: tree

    def pack(carry: Any, leaves: tuple[Array, ...], key: Key | None) -> Any:
        if key is not None:
            return carry, leaves, key
        return (carry, leaves) if first_leaves else carry

    def unpack(packed: Any) -> tuple[Any, tuple[Array, ...], Key | None]:
        if first_key is not None:
            carry, leaves, key = packed
            return carry, leaves, key
        return (*packed, None) if first_leaves else (packed, (), None)

    def start() -> Any:
        return pack(jax.tree.map(jax.numpy.asarray, make_carry()), tuple(first_leaves), first_key)

    def step(params: Any, packed: Any, x: Any) -> tuple[Any, Array]:
        carry, leaves, key = unpack(packed)
        state = (jax.tree.unflatten(structure, kept(leaves)),) if first_leaves else ()
        draws = {}
        if key is not None:
            key, draws["key"] = jax.random.split(key)
        carry, output, new_state = call(params, carry, x, state, draws)
        return pack(carry, kept(tuple(jax.tree.leaves(new_state))), key), output

    def restart(packed: Any) -> Any:
        _, leaves, key = unpack(packed)
        return pack(unpack(start())[0], leaves, key)

    return from_function(step, init, start)._replace(restart=restart if cut else None)


def maker(eqx: Any, module: Any, inference: bool | None) -> Callable[[Key], tuple[Any, Any, Any]]:
    """key -> (params, the rest of the module, its `eqx.nn.State` or None)."""
    is_made = isinstance(module, (eqx.Module, tuple))
    if not is_made and not callable(module):
        raise TypeError(
            f"from_equinox takes an equinox.Module, a pair (module, eqx.nn.State) or a function that "
            f"makes one from a key, got {module!r}"
        )

    def make(key: Key) -> tuple[Any, Any, Any]:
        model, state = _module_and_state(eqx, module if is_made else module(key))
        if inference is not None:
            model = eqx.nn.inference_mode(model, inference)
        return *eqx.partition(model, eqx.is_inexact_array), state

    return make


def import_equinox() -> Any:
    try:
        import equinox
    except ImportError:
        raise ImportError(
            "from_equinox needs Equinox, which is not installed: pip install 'kfrtrl_jax[equinox]'"
        ) from None
    return equinox


def _module_and_state(eqx: Any, made: Any) -> tuple[Any, Any]:
    """The module and its `eqx.nn.State`, None if it has none."""
    module, state = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not (isinstance(module, eqx.Module) and callable(module)):
        raise TypeError(
            f"{module!r} is not a recurrent cell: it is no equinox.Module with __call__"
        )
    if not (state is None or isinstance(state, eqx.nn.State)):
        raise TypeError(f"the state of a module must be an eqx.nn.State, got {state!r}")
    return module, state


def _zeros(eqx: Any, module: Any) -> Any:
    if not isinstance(module, (eqx.nn.GRUCell, eqx.nn.LSTMCell)):
        raise ValueError(
            f"{type(module).__name__} needs initial_carry, the state at the start of a sequence: "
            f"cells.from_equinox(module, jnp.zeros(64))"
        )
    zeros = jax.numpy.zeros(module.hidden_size, module.weight_hh.dtype)
    return zeros if isinstance(module, eqx.nn.GRUCell) else (zeros, zeros)


def require_key(eqx: Any, module: Any, key: Key | None) -> None:
    """Refuses a key that is not taken, and dropout without one."""
    name = type(module).__name__
    taken = inspect.signature(module).parameters.values()
    if key is not None and not any(p.name == "key" or p.kind is p.VAR_KEYWORD for p in taken):
        raise ValueError(f"key is given, but {name} cannot be called with an argument `key`")

    def is_dropout(node: Any) -> bool:
        return isinstance(node, eqx.nn.Dropout)

    layers = filter(is_dropout, jax.tree.leaves(module, is_leaf=is_dropout))
    if key is None and any(not layer.inference and layer.p != 0 for layer in layers):
        raise ValueError(
            f"{name} has dropout, which draws random numbers: pass key=jax.random.key(0), or "
            f"inference=True to turn it off"
        )


def _carry_and_output(name: str, params: Any, carry: Any, result: Any) -> tuple[Any, Any]:
    """What a module returned, told apart by the carry that it was given."""
    if signature(result) == signature(carry):
        return result, jax.tree.leaves(result)[0]
    if isinstance(result, tuple) and len(result) == 2 and signature(result[0]) == signature(carry):
        return result
    pair = result if isinstance(result, tuple) and len(result) == 2 else (result, result)
    if _shapes(pair[0]) == _shapes(carry):
        return require_result(params, carry, pair)
    raise TypeError(
        f"{name} must return the carry or (carry, output), with a carry like that which it was given, "
        f"{shown(carry)}; it returned {shown(result)}"
    )


def _shapes(tree: Any) -> tuple[Any, list[tuple[int, ...]]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [jax.numpy.shape(leaf) for leaf in leaves]
