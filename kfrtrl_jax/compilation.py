"""Compiler options under which a training step runs fastest."""

from __future__ import annotations

import functools
from typing import Any

import jax

_OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {
        # Batched products of some hundred rows run on one thread in YNNPACK and on all in Eigen;
        # reductions are many times as fast in YNNPACK.
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
        # Or every step of a scan copies the influence, in fear that its reader comes too late.
        "xla_cpu_copy_insertion_use_region_analysis": True,
    }
}


@functools.cache
def compiler_options() -> dict[str, Any]:
    """For `jax.jit(..., compiler_options=...)`: those that this version of XLA knows, by name.

    They change no result beyond rounding. On other backends than the CPU there are none.
    """
    return {
        name: value
        for name, value in _OPTIONS.get(jax.default_backend(), {}).items()
        if _is_known(name, value)
    }


def _is_known(name: str, value: Any) -> bool:
    """Whether a program compiles with an option; XLA's own flags come and go between versions."""
    try:
        jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True
