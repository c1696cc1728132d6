"""Where the groups of a sweep run: in this process, on a Ray cluster, or as Slurm jobs.

An engine is a function of jobs that gives each job with its results as soon as it has them, or with the
error that ended it. What a job does is the same everywhere, `jobs.run`: it goes on from its last
checkpoint, so a job that was lost with its machine is simply started again.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from kfrtrl_jax._src.compositions.notation import Call, parse
from kfrtrl_jax._src.compositions.values import check_bounds, check_value, suggest
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training.engines.jobs import Engine
from kfrtrl_jax.training.engines.local import make_local
from kfrtrl_jax.training.program import Experiment

# Those that need a package of their own: the module, and the function that makes the engine.
_ELSEWHERE = {"ray": ("on_ray", "make_ray"), "slurm": ("on_slurm", "make_slurm")}
NAMES = ("local", *_ELSEWHERE)


def make(text: str) -> Callable[[Mapping[str, Experiment]], Engine]:
    """What makes an engine for a sweep.

    Args:
      text: "local", "ray", "slurm(partition='gpu', minutes=120)".

    Raises:
      ConfigError: if there is no such engine, it has no such option, or its package is missing.
    """
    call = parse(text, "--engine")
    if not isinstance(call, Call) or call.positional or call.name not in NAMES:
        raise ConfigError(
            f"--engine must be one of {', '.join(NAMES)}, with options as in "
            f"\"ray(address='auto', cpus=2)\", got {text!r}"
        )
    if call.name == "local":
        if call.keywords:
            raise ConfigError("--engine=local has no options")
        return make_local
    module, function = _ELSEWHERE[call.name]
    try:
        factory = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--engine={call.name} needs the package {error.name}: "
            f'pip install "kfrtrl_jax[{call.name}]"'
        ) from error
    options = _options(call, factory)
    return lambda experiments: factory(**options)


def _options(call: Call, factory: Callable[..., Engine]) -> dict[str, Any]:
    """The options of an engine, checked against its signature."""
    known, types = inspect.signature(factory).parameters, typing.get_type_hints(factory)
    options = {}
    for key, value in call.keywords.items():
        path = f"--engine={call.name}: {key}"
        if key not in known:
            raise ConfigError(f"{path} is no option of this engine{suggest(key, known)}")
        options[key] = check_value(path, value, types[key])
        check_bounds(path, key, options[key])
    return options
