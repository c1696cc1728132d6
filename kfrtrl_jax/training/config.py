"""Experiment configs: read from a file, checked, and completed before anything compiles.

A config is a nested dict of plain values. Its sections `cell`, `estimator`, `credit`, `task` and
`optimizer` each name a factory of the library. The other fields of a section are that factory's keyword
arguments, so the signature of the factory is the schema of the section.
"""

from __future__ import annotations

import difflib
import inspect
import math
import runpy
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ml_collections import FrozenConfigDict

from kfrtrl_jax import readouts
from kfrtrl_jax.cells import CELLS
from kfrtrl_jax.credit import CREDIT
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.estimators import ESTIMATORS
from kfrtrl_jax.optimizers import OPTIMIZERS
from kfrtrl_jax.tasks import TASKS

REQUIRED = inspect.Parameter.empty


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
      checkpoint_every: time steps per checkpoint, a multiple of log_every; 0 means only at the end and
        when stopped.
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


class Section(NamedTuple):
    """The schema of a section of a config.

    Attributes:
      factories: by name; a section without names has a single factory "".
      supplied: arguments of the factories that do not come from the config.
      extra: additional fields that belong to no factory, with their defaults.
      name: of the default factory; None if the config must name one.
    """

    factories: Mapping[str, Callable[..., Any]]
    supplied: frozenset[str] = frozenset()
    extra: Mapping[str, int] = types.MappingProxyType({})
    name: str | None = None


SECTIONS: dict[str, Section] = {
    "cell": Section(CELLS, frozenset({"input_size"})),
    "readout": Section({"": readouts.linear}, frozenset({"input_size", "output_size"})),
    "estimator": Section(ESTIMATORS, extra={"copies": 1, "reset_every": 0}),
    "credit": Section(CREDIT, name="none"),
    "task": Section(TASKS),
    "optimizer": Section(OPTIMIZERS),
}

# Bounds of fields by name, in any section, as intervals; other integers are at least 0.
_BOUNDS: dict[str, str] = {
    "num_steps": "[1, 2147483647]",
    "log_every": "[1, inf)",
    "segment_length": "[1, inf)",
    "eval_lanes": "[1, inf)",
    "copies": "[1, inf)",
    "seed": "[0, 4294967295]",
    "share": "[0, 1]",
    "learning_rate": "(0, inf)",
    "clip_norm": "[0, inf)",
    "init_scale": "[0, inf)",
    "eps": "(0, inf)",
    "b1": "[0, 1)",
    "b2": "[0, 1)",
    "decay": "[0, 1)",
    "momentum": "[0, 1)",
    "sparsity": "[0, 1)",
}


class Field(NamedTuple):
    """The type and the default of a field; REQUIRED if it has no default."""

    annotation: Any
    default: Any


def resolve(config: Any, overridden: Iterable[str] = ()) -> FrozenConfigDict:
    """Checks a config and fills in every default.

    If the name of a section was overridden, fields from the config file that the new factory does not
    have are dropped.

    Args:
      config: a ConfigDict or nested dict.
      overridden: paths of the fields that override the config file ("estimator.name").

    Returns:
      The complete config, immutable.

    Raises:
      ConfigError: for an unknown field or name, a wrong type or a value out of range.
    """
    given = _plain(config)
    overridden = frozenset(overridden)
    fields = {
        name: Field(annotation, RunFields._field_defaults.get(name, REQUIRED))
        for name, annotation in typing.get_type_hints(RunFields).items()
    }
    top = {name: value for name, value in given.items() if name not in SECTIONS}
    whole = _check_fields("config", top, fields, "a config", also=SECTIONS)
    for name, section in SECTIONS.items():
        whole[name] = _resolve_section(name, section, given.get(name, {}), overridden)
    for name in ("update_every", "window"):
        whole[name] = whole[name] or whole["segment_length"]
    _check_multiples(whole)
    _check_immediate(whole)
    _check_credit(whole)
    return FrozenConfigDict(whole)


def float_fields(config: Mapping[str, Any]) -> frozenset[str]:
    """The paths of a resolved config's float fields; one program can run many values of these."""
    paths = set()
    for name, section in SECTIONS.items():
        fields = _section_fields(section, config[name].get("name", ""))
        paths |= {f"{name}.{key}" for key, field in fields.items() if field.annotation is float}
    return frozenset(paths)


def arguments(config: Any, section: str, floats: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a section; values in `floats`, by path, replace those of the config."""
    spec = SECTIONS[section]
    return {
        key: floats.get(f"{section}.{key}", value)
        for key, value in config[section].items()
        if key != "name" and key not in spec.extra
    }


def check_path(path: str) -> None:
    """Refuses the path of an override that exists in no config.

    Raises:
      ConfigError: with the nearest names.
    """
    head, *rest = path.split(".")
    if head not in SECTIONS and head not in RunFields._fields:
        suggestion = _suggest(head, [*RunFields._fields, *SECTIONS])
        raise ConfigError(f"config.{path} is not a field of a config{suggestion}")
    if head in SECTIONS and not rest:
        raise ConfigError(f"config.{head} is a section; set its fields, as in config.{head}.name")
    if len(rest) > (head in SECTIONS):
        raise ConfigError(f"config.{path} is not a field of a config; {head} has no such subfield")


def call(path: str, function: str, *args: str) -> Any:
    """Runs a config file and calls one of its functions, such as get_config.

    Raises:
      ConfigError: if there is no such file or function, or if it raises.
    """
    file = Path(path)
    if not file.is_file():
        found = sorted(str(p) for p in file.parent.glob("*.py") if p.stem != "__init__")
        raise ConfigError(f"there is no config file {path!r}{_suggest(str(file), found)}")
    try:
        module = runpy.run_path(path, run_name=file.stem)
        if function not in module:
            raise ConfigError(f"config file {path} defines no function {function}()")
        return module[function](*args)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"config file {path} fails: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An exception as a single line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _plain(config: Any) -> dict[str, Any]:
    config = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(config, Mapping):
        raise ConfigError(f"a config must be a ConfigDict or a dict, got {_shown(config)}")
    return {str(key): value for key, value in config.items()}


def _section_fields(section: Section, name: str) -> dict[str, Field]:
    factory = section.factories[name]
    hints = typing.get_type_hints(factory)
    fields = {key: Field(int, default) for key, default in section.extra.items()}
    for key, parameter in inspect.signature(factory).parameters.items():
        if key not in section.supplied:
            fields[key] = Field(hints.get(key, Any), parameter.default)
    return fields


def _resolve_section(
    name: str, section: Section, given: Any, overridden: frozenset[str]
) -> dict[str, Any]:
    path = f"config.{name}"
    if not isinstance(given, Mapping):
        raise ConfigError(f"{path} must be a section with fields, got {_shown(given)}")
    given = dict(given)
    if "" in section.factories:
        return _check_fields(path, given, _section_fields(section, ""), path)
    choice = given.pop("name", section.name)
    if choice is None:
        raise ConfigError(f"{path}.name is missing; one of {', '.join(section.factories)}")
    if not isinstance(choice, str) or choice not in section.factories:
        suggestion = _suggest(str(choice), section.factories)
        raise ConfigError(f"{path}.name: there is no {name} {_shown(choice)}{suggestion}")
    fields = _section_fields(section, choice)
    if f"{name}.name" in overridden:
        given = {k: v for k, v in given.items() if k in fields or f"{name}.{k}" in overridden}
    return {"name": choice, **_check_fields(path, given, fields, f"{name} {choice}", also=["name"])}


def _check_fields(
    path: str,
    given: Mapping[str, Any],
    fields: Mapping[str, Field],
    owner: str,
    also: Iterable[str] = (),
) -> dict[str, Any]:
    for key in given:
        if key not in fields:
            suggestion = _suggest(key, [*also, *fields])
            raise ConfigError(f"{path}.{key} is not a field of {owner}{suggestion}")
    whole = {}
    for key, field in fields.items():
        value = given.get(key, field.default)
        if value is REQUIRED:
            raise ConfigError(f"{path}.{key} is missing ({_type_name(field.annotation)})")
        whole[key] = _check_value(f"{path}.{key}", value, field.annotation)
        _check_bounds(f"{path}.{key}", key, whole[key])
    return whole


def _check_value(path: str, value: Any, annotation: Any) -> Any:
    """The value in the annotation's type: an int given for a float becomes a float."""
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        if value not in options:
            suggestion = _suggest(str(value), [str(o) for o in options])
            raise ConfigError(f"{path} cannot be {_shown(value)}{suggestion}")
        return value
    if origin in (typing.Union, types.UnionType):
        for option in options:
            try:
                return _check_value(path, value, option)
            except ConfigError:
                continue
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is float and number:
        if not math.isfinite(value):
            raise ConfigError(f"{path} must be a finite number, got {value}")
        return float(value)
    if origin is tuple and isinstance(value, (tuple, list)):
        inner = options[0] if options else Any
        return tuple(_check_value(path, item, inner) for item in value)
    if annotation is int and isinstance(value, int) and number:
        return int(value)
    if annotation is Any or (annotation is type(None) and value is None):
        return value
    if annotation in (bool, str) and isinstance(value, annotation):
        return value
    raise ConfigError(f"{path} must be {_type_name(annotation)}, got {_shown(value)}")


def _check_bounds(path: str, key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    positive_size = isinstance(value, int) and key.endswith("_size")
    bounds = _BOUNDS.get(
        key,
        "[1, inf)" if positive_size else "[0, inf)" if isinstance(value, int) else "(-inf, inf)",
    )
    low, high = (float(x) for x in bounds[1:-1].split(","))
    too_low = value < low or (bounds[0] == "(" and value == low)
    too_high = value > high or (bounds[-1] == ")" and value == high)
    if not (too_low or too_high):
        return
    if high == math.inf:
        allowed = f"at least {low:g}" if bounds[0] == "[" else f"more than {low:g}"
    else:
        allowed = f"in {bounds}"
    raise ConfigError(f"{path} must be {allowed}, got {value}")


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
    if config["credit"]["share"] == 1 and config["estimator"]["name"] != "truncated":
        raise ConfigError(
            "config.credit.share = 1 leaves no part of the gradient to the influence estimator: use "
            'estimator.name = "truncated" or a share below 1'
        )


def _suggest(given: str, names: Iterable[str]) -> str:
    names = list(names)
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; one of {', '.join(names)}" if names else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _type_name(annotation: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}
    if annotation in names:
        return names[annotation]
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, options))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(option) for option in options)
    if annotation is type(None):
        return "None"
    return str(annotation).replace("typing.", "")
