"""Checks of single values in configs against the types and the bounds of their fields."""

from __future__ import annotations

import collections.abc
import difflib
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.compositions.notation import MAX_DEPTH, MAX_ITEMS, Call, Written
from kfrtrl_jax._src.errors import ConfigError

LARGEST_INTEGER = 2**31 - 1
# Longer names are shortened in messages.
_LONGEST_NAME = 100
_MOST_VALUES = 100_000

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
    "feedback_scale": "[0, inf)",
    "eps": "(0, inf)",
    "b1": "[0, 1)",
    "b2": "[0, 1)",
    "b3": "[0, 1)",
    "decay": "[0, 1)",
    "ema_decay": "[0, 1)",
    "momentum": "[0, 1)",
    "weight_decay": "[0, inf)",
    "init_value": "[0, inf)",
    "peak_value": "[0, inf)",
    "end_value": "[0, inf)",
    "value": "[0, inf)",
    "decay_steps": "[1, inf)",
    "transition_steps": "[1, inf)",
    "sparsity": "[0, 1)",
    # Optax has a constant for a rate of 0.
    "decay_rate": "(0, inf)",
    "div_factor": "(0, inf)",
    "final_div_factor": "(0, inf)",
    "eta_minus": "(0, 1)",
    "eta_plus": "(1, inf)",
    "min_step_size": "(0, inf)",
    "max_step_size": "(0, inf)",
    "adam_b1": "[0, 1)",
    "adam_b2": "[0, 1)",
    "adam_eps_root": "[0, inf)",
    "adam_weight_decay": "[0, inf)",
    "eps_root": "[0, inf)",
    "rho": "[0, 1)",
    "initial_scale": "[0, inf)",
    "initial_accumulator_value": "[0, inf)",
    "clipping_threshold": "(0, inf)",
    "min_norm": "[0, inf)",
    "trust_coefficient": "(0, inf)",
    "estim_lr0": "(0, inf)",
}
_NAMES = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}


def plain(path: str, value: Any) -> Any:
    """A config, or a part of it, as nested dicts, lists and tuples of plain values.

    References are followed. A placeholder that has no value yet is left out of its dict, as a field
    that is not given. NumPy's and JAX's scalars become Python's, and arrays lists; keys become text.

    Args:
      path: of the value, as in messages.
      value: anything that a config file can hold; what is of no known type is returned as it is.

    Raises:
      ConfigError: for a key that is no name, a reference that fails, more than 100,000 values, or a
        depth of more than MAX_DEPTH, such as that of a dict that holds itself.
    """
    return _Reader().plain(path, value, 0)


def is_tree(value: Any) -> bool:
    """Whether it has fields: a dict, a ConfigDict or the like, but not their class."""
    return hasattr(value, "items") and not isinstance(value, type)


def require_name(path: str, name: str) -> None:
    """Refuses a name that cannot be shown in a message as it is.

    Raises:
      ConfigError: if it is empty, or long, or holds characters that cannot be printed.
    """
    if not name or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise ConfigError(f"{path} has no field {quoted(name)}")


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
        suggestion = suggest(
            value if isinstance(value, str) else quoted(value), [str(o) for o in options]
        )
        raise ConfigError(f"{path} cannot be {quoted(value)}{suggestion}")
    if annotation is float and number:
        if not _is_finite(value):
            raise ConfigError(f"{path} must be a finite number, got {quoted(value)}")
        if abs(value) > (largest := float(jnp.finfo(jnp.result_type(float)).max)):
            raise ConfigError(f"{path} must be at most {largest:.6g}, got {quoted(value)}")
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
    if isinstance(value, tuple):
        # A list of numbers, such as indices, has bounds of its own; none of them is larger than this.
        for item in value:
            if isinstance(item, int) and abs(item) > LARGEST_INTEGER:
                raise ConfigError(f"{path} must be at most {LARGEST_INTEGER}, got {quoted(item)}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    whole = isinstance(value, int)
    interval = "(-inf, inf)"
    if by_name:
        otherwise = "[1, inf)" if key.endswith("_size") else "[0, inf)"
        interval = _BOUNDS.get(key, otherwise if whole else interval)
    if whole and bounds.ends(interval)[1] == math.inf and abs(value) > LARGEST_INTEGER:
        raise ConfigError(f"{path} must be at most {LARGEST_INTEGER}, got {quoted(value)}")
    if allowed := bounds.missed(interval, value):
        raise ConfigError(f"{path} must be {allowed}, got {quoted(value)}")


def suggest(given: str, names: Iterable[str]) -> str:
    """The end of a message: the names closest to the given one, or else all of them."""
    names, given = list(names), given[:_LONGEST_NAME]
    if close := difflib.get_close_matches(given, names, n=3, cutoff=0.6):
        return f"; did you mean {' or '.join(close)}?"
    return f"; one of {', '.join(names)}" if names else ""


def quoted(value: Any) -> str:
    """A value in a message, shortened."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "a value too long to show"
    except Exception:
        return f"a value of type {type(value).__name__} that cannot be shown"
    return text if len(text) <= 60 else f"{text[:57]}..."


def one_line(error: BaseException) -> str:
    """An exception as a single line."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
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


_UNSET = object()


def _followed(path: str, reference: ml_collections.FieldReference) -> Any:
    """The value of a reference; _UNSET for a placeholder without one."""
    try:
        value = reference.get()
    except ml_collections.config_dict.RequiredValueError:
        return _UNSET
    except Exception as error:
        raise ConfigError(f"{path} cannot be computed: {one_line(error)}") from None
    return _UNSET if value is None and reference.get_type() is not type(None) else value


class _Reader:
    """Reads a tree of values, and counts them."""

    def __init__(self) -> None:
        self.left = _MOST_VALUES

    def plain(self, path: str, value: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ConfigError(f"{_shortened(path)} is one of more than {_MOST_VALUES} values")
        # A composition in a list takes two levels.
        if depth > 2 * MAX_DEPTH:
            raise ConfigError(f"{_shortened(path)} is nested more than {MAX_DEPTH} deep")
        if isinstance(value, ml_collections.FieldReference):
            value = _followed(path, value)
            return self.plain(path, None if value is _UNSET else value, depth)
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            return _from_array(path, value)
        if isinstance(value, (list, tuple)):
            items = [self.plain(f"{path}.{i}", item, depth + 1) for i, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        if is_tree(value):
            return self.tree(path, value, depth)
        for known in (int, float, str):
            if isinstance(value, known) and not isinstance(value, (bool, Written)):
                return value if type(value) is known else known(value)
        return value

    def tree(self, path: str, tree: Any, depth: int) -> dict[str, Any]:
        keep = {"preserve_field_references": True}
        try:
            items = tree.items(**(keep if isinstance(tree, ml_collections.ConfigDict) else {}))
            pairs = [(key, value) for key, value in items]
        except Exception as error:
            # Of a type that only resembles a dict.
            raise ConfigError(f"{path} cannot be read: {one_line(error)}") from None
        found = {}
        for key, value in pairs:
            if isinstance(key, bool) or not isinstance(key, (str, int, np.integer)):
                raise ConfigError(f"{path} has the key {quoted(key)}, which is no name")
            name = str(key)
            require_name(path, name)
            if isinstance(value, ml_collections.FieldReference):
                value = _followed(f"{path}.{name}", value)
            if value is not _UNSET:
                found[name] = self.plain(f"{path}.{name}", value, depth + 1)
        return found


def _from_array(path: str, value: Any) -> Any:
    """The array's numbers as Python's, or the array itself if it holds something else."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return value
    if array.dtype.kind not in "biufU":
        return value
    if array.size > MAX_ITEMS:
        raise ConfigError(f"{path} has {array.size} numbers, more than {MAX_ITEMS}")
    return array.tolist()


def _shortened(path: str) -> str:
    return path if len(path) <= _LONGEST_NAME else f"{path[: _LONGEST_NAME - 3]}..."


def _check_union(path: str, value: Any, annotation: Any) -> Any:
    options = typing.get_args(annotation)
    # "None" on the command line is None wherever that is possible.
    for option in sorted(options, key=lambda option: option is not type(None)):
        try:
            return check_value(path, value, option)
        except ConfigError:
            continue
    number = value.literal() if isinstance(value, Written) else value
    if isinstance(number, (int, float)) and float in options:
        check_value(path, number, float)
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
