"""Experiment configs: read from a file, checked, and completed before anything compiles.

A config is a nested dict of plain values. Its sections `cell`, `estimator`, `credit`, `task` and
`optimizer` each name a factory, of the library or of the user ("module:name"). The other fields of a
section are that factory's keyword arguments, so the signature of the factory is the schema of the
section. Arguments may be made by factories themselves. A section is a dict or text,
"average(kf_rtrl, copies=4)" (see `composed`).
"""

from __future__ import annotations

import functools
import runpy
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ml_collections import FrozenConfigDict

import kfrtrl_jax
from kfrtrl_jax._src import precision
from kfrtrl_jax._src.compositions import composed
from kfrtrl_jax._src.compositions.factories import KINDS, REQUIRED
from kfrtrl_jax._src.compositions.values import (
    check_bounds,
    check_value,
    is_tree,
    one_line,
    plain,
    quoted,
    require_name,
    suggest,
    type_name,
)
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import workdir

# Where files are that are given by their names alone.
FOLDER = Path("configs")
# The sections of a config, in order.
SECTIONS = ("cell", "readout", "estimator", "credit", "task", "optimizer")


class RunFields(NamedTuple):
    """The fields of a config outside its sections.

    Attributes:
      num_steps: time steps of the whole run, a multiple of log_every. Raise it to extend a run.
      seed: of everything random in the run.
      log_every: time steps per line of metrics, a multiple of segment_length.
      segment_length: K, time steps per push of the influence.
      update_every: U, time steps per update of the parameters, a divisor of segment_length; 0 means
        segment_length.
      window: time steps whose linearizations are kept, a multiple of segment_length; 0 means
        segment_length. See `make_learner` for these three.
      immediate: where the immediate Jacobian of a step enters, see `make_learner`.
      eval_every: time steps per evaluation on held-out text, a multiple of log_every; 0 means only at
        the end.
      eval_lanes: the number of stretches that the held-out text is cut into; 1 means the whole text in
        order.
      checkpoint_every: time steps per checkpoint, a multiple of log_every; 0 means every ten minutes,
        at the end and when stopped.
      devices: over how many devices the lanes of a run, or the trials of a group, are spread; 0 means
        as many as can have equal shares. It changes results by rounding alone, and may differ when a
        run is continued.
      on_nonfinite: what happens when a loss, a gradient or a state is not finite. "stop" ends the run
        and names the step and the array. "skip" drops that segment: the parameters stay as they were
        before it, the lanes that are not finite start anew and the run goes on, unless this happens
        more than 100 times.
      dtype: the precision of the parameters, the carry and what is computed from them; "" for JAX's
        default, float32, or float64 with JAX_ENABLE_X64=1. In 16 bits the optimizer keeps a copy of the
        parameters in float32, to which it adds the updates.
      init_from: the workdir of another run, whose parameters (the best, or else the last) this one
        starts with. The optimizer and the estimator start anew. Once the run has a checkpoint, the
        folder is no longer read.
    """

    num_steps: int
    seed: int = 0
    log_every: int = 100
    segment_length: int = 1
    update_every: int = 0
    window: int = 0
    immediate: Literal["exact", "estimated"] = "exact"
    eval_every: int = 0
    eval_lanes: int = 1
    checkpoint_every: int = 0
    devices: int = 0
    on_nonfinite: Literal["stop", "skip"] = "stop"
    dtype: Literal["", "bfloat16", "float16", "float32", "float64"] = ""
    init_from: str = ""


def resolve(config: Any, overrides: Mapping[str, Any] | None = None) -> FrozenConfigDict:
    """Checks a config and fills in every default.

    Args:
      config: a ConfigDict or nested dict.
      overrides: values by path that replace those of the config, such as {"estimator.name": "uoro"} or
        {"estimator": "ok(rank=8)"}. Where a name is replaced, fields in the config that the new factory
        does not have are dropped.

    Returns:
      The complete config, immutable: a nested dict, in which a list of compositions is a dict with the
      keys "0", "1", ...

    Raises:
      ConfigError: for an unknown field or name, a wrong type or a value out of range.
    """
    if not is_tree(config):
        raise ConfigError(f"a config must be a ConfigDict or a dict, got {quoted(config)}")
    given = plain("config", config)
    inside = {}
    for path, value in (overrides or {}).items():
        head, *rest = _parts(path)
        value = plain(f"config.{path}", value)
        if head in SECTIONS:
            inside[f"config.{path}"] = value
        elif rest and head in RunFields._fields:
            raise ConfigError(
                f"config.{path} is not a field of a config; {head} has no such subfield"
            )
        else:
            given[head] = value
    whole = _run_fields({key: value for key, value in given.items() if key not in SECTIONS})
    for name in SECTIONS:
        whole[name] = composed.complete(KINDS[name], given.get(name, {}), f"config.{name}", inside)
    for name in ("update_every", "window"):
        whole[name] = whole[name] or whole["segment_length"]
    _check_multiples(whole)
    _check_immediate(whole)
    _check_credit(whole)
    try:
        return FrozenConfigDict(whole)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the config cannot be kept: {one_line(error)}") from None


@functools.cache
def run_types() -> dict[str, Any]:
    """The types of the fields outside the sections."""
    return typing.get_type_hints(RunFields)


def float_fields(config: Any) -> frozenset[str]:
    """The paths of a resolved config's float fields; one program can run many values of these."""
    return frozenset(
        path
        for name in SECTIONS
        for path in composed.float_paths(KINDS[name], config[name].to_dict(), name)
    )


def floats_of(config: Any) -> dict[str, Any]:
    """The values of a resolved config's float fields, by their paths."""
    flat = workdir.flatten(config.to_dict())
    return {path: flat[path] for path in sorted(float_fields(config))}


def make(
    config: Any, section: str, floats: Mapping[str, Any] | None = None, **supplied: Any
) -> Any:
    """Makes what a section of a resolved config describes: a cell, an estimator, a task, ...

    Args:
      config: from `resolve`.
      section: its name.
      floats: JAX scalars that replace float fields of the config, by path ("optimizer.learning_rate").
      supplied: the arguments that do not come from the config, such as a cell's input_size.

    Raises:
      ConfigError: if a factory refuses its arguments.
    """
    full = {f"config.{path}": value for path, value in (floats or {}).items()}
    made = composed.make(
        KINDS[section], config[section].to_dict(), f"config.{section}", full, **supplied
    )
    return made if not config.dtype else _in_precision(section, made, config.dtype)


def _in_precision(section: str, made: Any, dtype: Any) -> Any:
    try:
        if section == "cell":
            return precision.cell_in(made, dtype)
        if section == "readout":
            return precision.readout_in(made, dtype)
    except ValueError as error:
        raise ConfigError(f"config.dtype: {error}") from None
    is_short = section == "optimizer" and dtype in ("bfloat16", "float16")
    return precision.in_float32(made) if is_short else made


def shown(config: Any, section: str) -> str:
    """A section of a config as readable text without its defaults: "average(kf_rtrl, copies=4)"."""
    return composed.shown(KINDS[section], config[section].to_dict())


def completed(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """A resolved config from a file, with the defaults of fields that the library has got since.

    A config that this version of the library cannot resolve is given back as it is.
    """
    try:
        return resolve(stored).to_dict()
    except ConfigError:
        return stored


def call(path: str, function: str, *args: str) -> Any:
    """Runs a config file and calls one of its functions, such as get_config.

    Args:
      path: of the file; a bare name such as "copy" is that of a file in configs/.
      function: its name.
      *args: of the function.

    Raises:
      ConfigError: if there is no such file or function, or if it raises or exits.
    """
    file = find_file(path)
    try:
        module = runpy.run_path(str(file), run_name=file.stem)
        if function not in module:
            raise ConfigError(f"config file {path} defines no function {function}()")
        return module[function](*args)
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ConfigError(f"config file {path} fails: {one_line(error)}") from error


def shipped() -> Path:
    """The folder of the configs that come with the library: in the package, or beside it in a clone."""
    package = Path(kfrtrl_jax.__file__).parent
    return next(p for p in (package / FOLDER, package.parent / FOLDER) if p.is_dir())


def named() -> dict[str, Path]:
    """The config files with a bare name: those in configs/ here, and the library's."""
    files = [path for folder in (shipped(), FOLDER) for path in folder.glob("*.py")]
    found = {path.stem: path for path in files if path.stem != "__init__"}
    return dict(sorted(found.items()))


def find_file(path: str) -> Path:
    """The config file of a path, or of a bare name such as "copy".

    A file "configs/NAME.py" that is not here is that of the library.

    Raises:
      ConfigError: if there is none.
    """
    if not path:
        raise ConfigError("--config is empty; for example --config=copy")
    file = Path(path)
    try:
        if not file.exists() and file.parent == Path() and not file.suffix:
            file = FOLDER / f"{path}.py"
        if not file.exists() and file.parent == FOLDER and (shipped() / file.name).is_file():
            return shipped() / file.name
        if file.is_file():
            return file
        if file.is_dir():
            raise ConfigError(f"--config={path} is a folder; give a file in it")
        here = named() if file.parent == FOLDER else {p.stem: p for p in file.parent.glob("*.py")}
        found = sorted(str(file.parent / f"{name}.py") for name in here if name != "__init__")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"there is no config file {path!r}: {one_line(error)}") from None
    raise ConfigError(f"there is no config file {path!r}{suggest(str(file), found)}")


def _parts(path: str) -> list[str]:
    """The names in the path of an override.

    Raises:
      ConfigError: if one is empty or cannot be shown.
    """
    parts = path.split(".")
    for i, part in enumerate(parts):
        require_name(".".join(["config", *parts[:i]]), part)
    return parts


def _run_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields outside the sections, checked and completed."""
    for key in given:
        if key not in RunFields._fields:
            suggestion = suggest(key, [*SECTIONS, *RunFields._fields])
            raise ConfigError(f"config.{key} is not a field of a config{suggestion}")
    whole = {}
    for key, annotation in run_types().items():
        path = f"config.{key}"
        value = given.get(key, RunFields._field_defaults.get(key, REQUIRED))
        if value is REQUIRED:
            raise ConfigError(f"{path} is missing ({type_name(annotation)})")
        whole[key] = check_value(path, value, annotation)
        check_bounds(path, key, whole[key])
    return whole


def _check_multiples(config: Mapping[str, Any]) -> None:
    for field, unit in [
        ("segment_length", "update_every"),
        ("window", "segment_length"),
        ("log_every", "segment_length"),
        ("num_steps", "log_every"),
        ("eval_every", "log_every"),
        ("checkpoint_every", "log_every"),
    ]:
        value, step = config[field], config[unit]
        if value % step:
            below, above = value // step * step, (value // step + 1) * step
            nearest = f"{below} or {above}" if below else f"{above}"
            raise ConfigError(
                f"config.{field} must be a multiple of {unit} ({step}), got {value}; "
                f"nearest: {nearest}"
            )


def _check_immediate(config: Mapping[str, Any]) -> None:
    if config["immediate"] == "estimated" and config["window"] > 1:
        raise ConfigError(
            'config.immediate = "estimated" pushes the influence at every step and keeps no steps: it '
            "needs segment_length = 1 and window = 1"
        )


def _check_credit(config: Mapping[str, Any]) -> None:
    if config["credit"]["name"] == "none":
        return
    if not config["update_every"] == config["segment_length"] == config["window"]:
        raise ConfigError(
            "config.credit closes a segment with a single update: it needs update_every and window "
            f"equal to segment_length ({config['segment_length']})"
        )
    if config["immediate"] == "estimated":
        raise ConfigError(
            'config.immediate = "estimated" does not backpropagate through segments, which a credit '
            'needs: use immediate = "exact" or credit.name = "none"'
        )
    if config["credit"].get("share") == 1 and config["estimator"]["name"] != "truncated":
        raise ConfigError(
            "config.credit.share = 1 leaves no part of the gradient to the influence estimator: use "
            'estimator.name = "truncated" or a share below 1'
        )
