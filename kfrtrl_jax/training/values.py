"""Checks of single values in configs against the types and the bounds of their fields."""

from __future__ import annotations

import collections.abc
import difflib
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training.notation import MAX_DEPTH, Call, Written

LARGEST_INTEGER = 2**31 - 1

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
_NAMES = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}


def check_value(path: str, value: Any, annotation: Any) -> Any:
    """The value in the annotation's type: an int given for a float becomes a float.

    Where the annotation is none that a config knows, any plain value will do.

    Raises:
      ConfigError: if it is of another type.
    """
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _check_union(path, value, annotation)
    if isinstance(value, Written):
        value = str(value) if annotation is str or origin is Literal else value.literal()
    if isinstance(value, Call) and (annotation is str or origin is Literal):
        raise ConfigError(f"{path} must be text in quotes, got the name {quoted(value)}")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if origin is Literal:
        if value in options:
            return value
        suggestion = suggest(str(value), [str(o) for o in options])
        raise ConfigError(f"{path} cannot be {quoted(value)}{suggestion}")
    if annotation is float and number:
        if not _is_finite(value):
            raise ConfigError(f"{path} must be a finite number, got {quoted(value)}")
        return float(value)
    if _is_sequence(annotation) and isinstance(value, (tuple, list)):
        inner = list(options) if origin is tuple and ... not in options else []
        if inner and len(inner) != len(value):
            raise ConfigError(f"{path} must be a list of {len(inner)}, got {quoted(value)}")
        inner = inner or [options[0] if options else Any] * len(value)
        return tuple(check_value(path, *pair) for pair in zip(value, inner))
    if annotation is int and isinstance(value, int) and number:
        return int(value)
    if annotation is type(None) and value is None:
        return None
    if annotation in (bool, str) and isinstance(value, annotation):
        return value
    if not (
        _is_sequence(annotation) or any(annotation is known for known in (*_NAMES, type(None)))
    ):
        return _plain(path, value)
    raise ConfigError(f"{path} must be {type_name(annotation)}, got {quoted(value)}")


def check_bounds(path: str, key: str, value: Any, *, by_name: bool = True) -> None:
    """Refuses a number outside the bounds of its field.

    Args:
      path: of the field.
      key: its name.
      value: of any type.
      by_name: whether the field's name says what its bounds are; if not, only integers have any.

    Raises:
      ConfigError: saying what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    whole = isinstance(value, int)
    bounds = "(-inf, inf)"
    if by_name:
        otherwise = "[1, inf)" if key.endswith("_size") else "[0, inf)"
        bounds = _BOUNDS.get(key, otherwise if whole else bounds)
    low, high = (float(x) for x in bounds[1:-1].split(","))
    if whole and high == math.inf and abs(value) > LARGEST_INTEGER:
        raise ConfigError(f"{path} must be at most {LARGEST_INTEGER}, got {quoted(value)}")
    too_low = value < low or (bounds[0] == "(" and value == low)
    too_high = value > high or (bounds[-1] == ")" and value == high)
    if not (too_low or too_high):
        return
    if high == math.inf:
        allowed = f"at least {low:g}" if bounds[0] == "[" else f"more than {low:g}"
    else:
        allowed = f"in {bounds}"
    raise ConfigError(f"{path} must be {allowed}, got {quoted(value)}")


def suggest(given: str, names: Iterable[str]) -> str:
    """The end of a message: the names closest to the given one, or else all of them."""
    names = list(names)
    if close := difflib.get_close_matches(given, names, n=3, cutoff=0.6):
        return f"; did you mean {' or '.join(close)}?"
    return f"; one of {', '.join(names)}" if names else ""


def quoted(value: Any) -> str:
    """A value in a message, shortened."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "a value too long to show"
    return text if len(text) <= 60 else f"{text[:57]}..."


def one_line(error: BaseException) -> str:
    """An exception as a single line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def type_name(annotation: Any) -> str:
    """A type in words."""
    if annotation in _NAMES:
        return _NAMES[annotation]
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, options))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(option) for option in options)
    if _is_sequence(annotation):
        word = type_name(options[0]).split()[-1] if options else "value"
        return f"a list of {word}s"
    if annotation is type(None):
        return "None"
    return getattr(annotation, "__name__", None) or str(annotation).replace("typing.", "")


def _check_union(path: str, value: Any, annotation: Any) -> Any:
    options = typing.get_args(annotation)
    # "None" on the command line is None wherever that is possible.
    for option in sorted(options, key=lambda option: option is not type(None)):
        try:
            return check_value(path, value, option)
        except ConfigError:
            continue
    raise ConfigError(f"{path} must be {type_name(annotation)}, got {quoted(value)}")


def _is_sequence(annotation: Any) -> bool:
    origin = typing.get_origin(annotation) or annotation
    return origin in (tuple, list, collections.abc.Sequence)


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _plain(path: str, value: Any, depth: int = 0) -> Any:
    """The value with lists as tuples, if it is made of numbers, strings, None, lists and dicts."""
    if depth > MAX_DEPTH:
        raise ConfigError(f"{path} is nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_plain(path, item, depth + 1) for item in value)
    if hasattr(value, "items"):
        return {str(key): _plain(path, item, depth + 1) for key, item in value.items()}
    hint = ", text in quotes" if isinstance(value, Call) else ""
    raise ConfigError(f"{path} must be a plain value{hint}, got {quoted(value)}")
