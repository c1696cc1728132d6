"""All uses of JAX beyond its documented functions: jaxprs, their equations, tracers.

If a release of JAX changes one of these, this is the only module to adapt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax._src import lru_cache
from jax.extend import core
from jax.interpreters import partial_eval

Literal = core.Literal

# Primitives that only wrap a jaxpr and can be replaced by it.
TRANSPARENT = frozenset("jit pjit closed_call core_call remat checkpoint remat2".split())

# Primitives with a custom derivative rule beside the forward jaxpr.
CUSTOM_PULLBACKS = frozenset("custom_vjp_call custom_vjp_call_jaxpr".split())
CUSTOM_RULES = CUSTOM_PULLBACKS | {"custom_jvp_call"}

# Primitives that read raw bits (uint32) as a PRNG key; so many of their first inputs are its parts.
READS_RAW_KEYS = {"random_wrap": 1, "threefry2x32": 2}


def closed(jaxpr: Any) -> Any:
    """The closed form of a jaxpr that may be open."""
    return jaxpr if hasattr(jaxpr, "consts") else core.ClosedJaxpr(jaxpr, ())


def as_function(jaxpr: Any) -> Callable[..., Any]:
    """A jaxpr as a function of its flat inputs."""
    return core.jaxpr_as_fun(closed(jaxpr))


def wrapped_jaxpr(params: dict[str, Any]) -> Any:
    """The closed jaxpr that a transparent primitive wraps."""
    return closed(params["jaxpr" if "jaxpr" in params else "call_jaxpr"])


def bind(primitive: Any, params: dict[str, Any], values: Sequence[Any]) -> Sequence[Any]:
    """The outputs of a primitive with an equation's parameters, at the given values."""
    result = primitive.bind(*values, **primitive.get_bind_params(params))
    return result if primitive.multiple_results else [result]


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The open jaxprs among an equation's parameters: loop bodies, branches, wrapped functions."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "jaxpr") and hasattr(item, "consts"):
                yield item.jaxpr
            elif hasattr(item, "eqns") and hasattr(item, "invars"):
                yield item


def without_unused(jaxpr: Any) -> Any:
    """An open jaxpr without dead code, also inside its loops and branches."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def all_equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of an open jaxpr and of all jaxprs inside them."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_jaxprs(eqn.params):
            yield from all_equations(inner)


def is_traced(value: Any) -> bool:
    """Whether a value is a tracer, inside a function that JAX is tracing."""
    return isinstance(value, jax.core.Tracer)


def is_tracing() -> bool:
    """Whether the caller is being traced by JAX, for example inside `jax.jit`."""
    return is_traced(jax.numpy.zeros(()))


def origin(primitive: Any, source: Any) -> str:
    """The name of an equation and its place in the user's code, "max at file.py:12".

    Args:
      primitive: the equation's.
      source: the equation's source_info.
    """
    frames = source.traceback.frames if source is not None and source.traceback else []
    for frame in frames:
        if not any(part in frame.file_name for part in ("/jax/", "/kfrtrl_jax/linearization/")):
            line = f"{frame.file_name.rsplit('/', 1)[-1]}:{frame.line_num}"
            return f"{primitive.name} at {line}"
    return f"{primitive.name} at an unknown line"


def write_cache_atomically() -> None:
    """Lets JAX write a file of its cache of compiled programs whole or not at all, over an older one.

    JAX writes in place and never over a file that exists: one that was cut off, by the end of the
    process or by a full disk, would stay, fail to be read in every process, and never be replaced.
    """
    original = lru_cache.LRUCache.put

    def put(self: Any, key: str, value: bytes) -> None:
        if self.eviction_enabled:
            original(self, key, value)
            return
        path = Path(self.path) / f"{key}{lru_cache._CACHE_SUFFIX}"
        temporary = path.with_name(f".{os.getpid()}-{path.name[:200]}.tmp")
        try:
            temporary.write_bytes(value)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    lru_cache.LRUCache.put = put  # type: ignore[method-assign]
