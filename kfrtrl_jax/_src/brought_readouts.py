"""Readouts from modules of Flax and Equinox, unmodified; these are imported for them alone."""

from __future__ import annotations

from typing import Any

import jax

from kfrtrl_jax._src.base import Key, Readout
from kfrtrl_jax._src.cells.equinox_cells import import_equinox, maker, require_key


def from_flax(module: Any, example_output: Any = None) -> Readout:
    """A readout that is a Flax module, such as `nnx.Linear(64, 10, rngs=nnx.Rngs(0))`.

    Args:
      module: one of
        - an NNX module, called as module(output): it keeps the parameters it was made with, whatever
          key `init` is given;
        - a function rngs -> NNX module: then `init(key)` draws new parameters;
        - a Linen module, such as `linen.Dense(10)`.
      example_output: one lane's output of the cell, an array or a `jax.ShapeDtypeStruct`: a Linen
        module needs it to determine the shapes of its parameters.

    Raises:
      TypeError: if the module is none of these.
      ValueError: if a Linen module comes without example_output, or if the module keeps variables
        beside its parameters, as normalization by batches and dropout do.
    """
    from flax import linen, nnx

    if isinstance(module, linen.Module):
        if example_output is None:
            raise ValueError("a Linen readout needs example_output, one lane's output of the cell")
        return _from_linen(module, example_output)
    if not (isinstance(module, nnx.Module) or callable(module)):
        raise TypeError(
            f"readouts.from_flax takes a Linen module, an NNX module or a function that makes one, got "
            f"{module!r}"
        )
    make = (lambda rngs: module) if isinstance(module, nnx.Module) else module
    first = make(nnx.Rngs(0))
    parts: Any = nnx.split(first, nnx.Param, ...)
    graph, _, others = parts
    kinds = {
        type(leaf).__name__
        for leaf in jax.tree.leaves(others, is_leaf=lambda x: isinstance(x, nnx.Variable))
    }
    _require_parameters_only(type(first).__name__, kinds)

    def init(key: Key) -> Any:
        parts: Any = nnx.split(make(nnx.Rngs(key)), nnx.Param, ...)
        return jax.tree.map(lambda leaf: leaf, parts[1])

    def apply(params: Any, output: Any) -> Any:
        # Flax's merge shares variables with the module that it makes.
        return nnx.merge(graph, jax.tree.map(lambda leaf: leaf, params))(output)

    return Readout(init, apply)


def from_equinox(module: Any) -> Readout:
    """A readout that is an Equinox module, such as `eqx.nn.MLP(64, 10, 128, 2, key=key)`.

    Args:
      module: an `equinox.Module`, called as module(output), which keeps the parameters it was made
        with, or a function key -> such a module: then `init(key)` draws new parameters.

    Raises:
      ImportError: if Equinox is not installed.
      TypeError: if the module is neither.
      ValueError: if it has state, or dropout that is on.
    """
    eqx = import_equinox()
    make = maker(eqx, module, None)
    _, static, state = make(jax.random.key(0))
    _require_parameters_only(type(static).__name__, set() if state is None else {"State"})
    require_key(eqx, static, None)

    def apply(params: Any, output: Any) -> Any:
        return eqx.combine(params, static)(output)

    return Readout(lambda key: make(key)[0], apply)


def _from_linen(module: Any, example_output: Any) -> Readout:
    like = jax.ShapeDtypeStruct(
        jax.numpy.shape(example_output), jax.numpy.result_type(example_output)
    )

    def variables(key: Key) -> Any:
        return module.init({"params": key}, jax.numpy.zeros(like.shape, like.dtype))

    kinds = set(jax.eval_shape(variables, jax.random.key(0))) - {"params"}
    _require_parameters_only(type(module).__name__, kinds)

    def apply(params: Any, output: Any) -> Any:
        return module.apply({"params": params}, output)

    return Readout(lambda key: variables(key).get("params", {}), apply)


def _require_parameters_only(name: str, kinds: set[str]) -> None:
    if kinds:
        raise ValueError(
            f"the readout {name} keeps {', '.join(sorted(kinds))} beside its parameters, but a readout "
            f"is a function of its parameters and the cell's output; put what it keeps into the cell"
        )
