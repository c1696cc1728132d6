"""Compositions in configs: factories with arguments, some of which are made by factories themselves.

A composition is given as text, "average(kf_rtrl, copies=4)" (see `notation`), or as a nested dict,
{"name": "average", "estimator": {"name": "kf_rtrl"}, "copies": 4}. Completed, it is a nested dict with
every default filled in. A list of compositions is then a dict with the keys "0", "1", ..., so that each
field has a path, "cell.cells.0.hidden_size".

An argument is itself a composition where its annotation says so: `Cell`, `InfluenceEstimator` and the
other types of `factories.KINDS`, or a sequence of one of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from kfrtrl_jax._src.base import Cell
from kfrtrl_jax._src.cells.function import output_shape
from kfrtrl_jax._src.compositions.factories import (
    KINDS,
    REQUIRED,
    Field,
    Kind,
    Nested,
    fields,
    find,
    is_own,
    positional,
    supplied_names,
)
from kfrtrl_jax._src.compositions.notation import MAX_DEPTH, Call, Written, parse
from kfrtrl_jax._src.compositions.values import (
    check_bounds,
    check_value,
    is_tree,
    one_line,
    quoted,
    suggest,
    type_name,
)
from kfrtrl_jax._src.errors import ConfigError, DataError, UnsupportedCellError

_NONE: Mapping[str, Any] = {}


def complete(
    kind: Kind, given: Any, path: str, overrides: Mapping[str, Any] = _NONE
) -> dict[str, Any]:
    """Checks a composition and fills in every default.

    If a name is overridden, fields of the old factory that the new one does not have are dropped.

    Args:
      kind: of what it makes.
      given: text or a nested dict.
      path: of the composition, as in messages.
      overrides: values by path that replace parts of it, or the whole.

    Raises:
      ConfigError: naming the field that is unknown, missing or wrong.
    """
    if path.count(".") > 2 * MAX_DEPTH:
        raise ConfigError(f"{path[:60]}... is nested more than {MAX_DEPTH} deep")
    section = _with_overrides(_opened(kind, overrides.get(path, given), path), path, overrides)
    name, chosen = "", {}
    if "" not in kind.factories:
        _refuse_inside(f"{path}.name", overrides)
        name = section.pop("name", kind.default)
        if name is None:
            raise ConfigError(f"{path}.name is missing; one of {', '.join(kind.factories)}")
        chosen = {"name": name}
    schema = fields(kind, find(kind, name, path))
    if kind.word == "estimator":
        _refuse_former_fields(section, schema, name, path)
    if kind.word == "optimizer" and not is_own(name):
        _settle_learning_rate(section, schema, path, overrides)
    if f"{path}.name" in overrides:
        section = {
            key: value
            for key, value in section.items()
            if key in schema or _beneath(f"{path}.{key}", overrides)
        }
    for key in section:
        if key not in schema:
            owner = f"{kind.word} {name}" if name else path
            suggestion = suggest(key, [*chosen, *schema])
            raise ConfigError(f"{path}.{key} is not a field of {owner}{suggestion}")
    for key, field in schema.items():
        value = section.get(key, field.default)
        # A default that no config can hold is left to the factory.
        if key in section or _can_be_written(value, field):
            own = is_own(name)
            chosen[key] = _complete_field(key, value, field, f"{path}.{key}", overrides, own)
    return chosen


def make(
    kind: Kind,
    section: Mapping[str, Any],
    path: str,
    floats: Mapping[str, Any] = _NONE,
    **supplied: Any,
) -> Any:
    """Makes what a completed composition describes, from the inside out.

    Cells in a list are layers: the first has the input size of the whole, and every other one the
    output size of the one before it.

    Args:
      kind: of what it makes.
      section: from `complete`.
      path: as for `complete`.
      floats: JAX scalars by path that replace float fields; they may be tracers.
      supplied: the arguments that do not come from the config.

    Raises:
      ConfigError: if a factory refuses its arguments.
    """
    name = section.get("name", "")
    factory = find(kind, name, path)
    arguments = {key: supplied[key] for key in supplied_names(kind, factory) if key in supplied}
    for key, field in fields(kind, factory).items():
        if key not in section:
            continue
        value, inner = section[key], f"{path}.{key}"
        if field.nested is None or value is None:
            arguments[key] = floats.get(inner, value)
        elif field.nested.many:
            arguments[key] = _make_list(KINDS[field.nested.kind], value, inner, floats, supplied)
        else:
            arguments[key] = make(KINDS[field.nested.kind], value, inner, floats, **supplied)
    made = _call(factory, name, arguments, path)
    if is_own(name) and not isinstance(made, kind.type):
        raise ConfigError(f"{path}.name: {name} must make {kind}, got {quoted(made)}")
    return made


def read(word: str, text: str) -> Any:
    """What a text describes, such as the estimator of "average(kf_rtrl, copies=4)".

    Args:
      word: the kind of thing, "estimator".
      text: in the notation.

    Raises:
      ConfigError: if it names nothing, or if a factory refuses its arguments.
    """
    kind = KINDS[word]
    return make(kind, complete(kind, text, word), word)


def float_paths(kind: Kind, section: Mapping[str, Any], path: str) -> Iterator[str]:
    """The paths of float fields; those of a user's own factories count as constants."""
    name = section.get("name", "")
    for key, field in fields(kind, find(kind, name, path)).items():
        if key in section and field.nested and section[key] is not None:
            inner = KINDS[field.nested.kind]
            parts = section[key] if field.nested.many else {"": section[key]}
            for number, part in parts.items():
                yield from float_paths(inner, part, f"{path}.{key}.{number}".rstrip("."))
        elif key in section and not is_own(name) and _varies(kind, name, key, field, section[key]):
            yield f"{path}.{key}"


def _varies(kind: Kind, name: str, key: str, field: Field, value: Any) -> bool:
    """Whether a field is a float, and its factory does not need to know which one."""
    known = getattr(kind.factories[name], "constants", ())
    given = field.annotation is float or (
        field.annotation == (float | None) and isinstance(value, float)
    )
    return given and key not in known


def shown(kind: Kind, section: Any) -> str:
    """A composition as readable text without its defaults: "average(kf_rtrl, copies=4)"."""
    return section if isinstance(section, str) else repr(_as_call(kind, section))


def output_size(cell: Cell, input_size: int, path: str) -> int:
    """The length of a cell's output.

    Raises:
      ConfigError: if the output is not a vector.
    """
    shapes = [leaf.shape for leaf in jax.tree.leaves(output_shape(cell, input_size))]
    if len(shapes) != 1 or len(shapes[0]) != 1:
        raise ConfigError(f"{path}: the output of the cell must be a vector, got shapes {shapes}")
    return shapes[0][0]


def _opened(kind: Kind, given: Any, path: str) -> dict[str, Any]:
    """A composition as a dict of its fields, those inside as they are."""
    if "" in kind.factories:
        if is_tree(given):
            return {str(key): value for key, value in given.items()}
        raise ConfigError(f"{path} must be a section with fields, got {quoted(given)}")
    if isinstance(given, str):
        given = parse(given, path)
    if isinstance(given, Call):
        return _with_keywords(kind, given, path)
    if is_tree(given):
        return {str(key): value for key, value in given.items()}
    raise ConfigError(f"{path} must be {kind}, got {quoted(given)}")


def _with_keywords(kind: Kind, call: Call, path: str) -> dict[str, Any]:
    """The arguments of a call by name."""
    section = {"name": call.name, **call.keywords}
    if "name" in call.keywords:
        raise ConfigError(f"{path}.name is not a field of {kind.word} {call.name}")
    if call.positional:
        names = positional(kind, find(kind, call.name, path))
        if len(call.positional) > len(names):
            takes = f"takes {len(names)} arguments" if names else "takes no argument"
            raise ConfigError(
                f"{path}: {kind.word} {call.name} {takes} by position, got {len(call.positional)}; "
                f"write name=value"
            )
        for key, value in zip(names, call.positional):
            if key in section:
                raise ConfigError(f"{path}.{key} is given twice in {quoted(call)}")
            section[key] = value
    return section


def _with_overrides(
    section: dict[str, Any], path: str, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields with those that are overridden; one that is overridden in part exists at least."""
    for other in _beneath(f"{path}.", overrides):
        key, *deeper = other[len(path) + 1 :].split(".")
        if deeper:
            section.setdefault(key, {})
        else:
            section[key] = overrides[other]
    return section


def _beneath(start: str, overrides: Mapping[str, Any]) -> list[str]:
    """The overrides of a path and of what lies inside."""
    inside = start if start.endswith(".") else f"{start}."
    return [path for path in overrides if path == start or path.startswith(inside)]


def _complete_field(
    key: str, value: Any, field: Field, path: str, overrides: Mapping[str, Any], own: bool
) -> Any:
    if value is REQUIRED:
        raise ConfigError(f"{path} is missing ({field.nested or type_name(field.annotation)})")
    if field.nested is None:
        _refuse_inside(path, overrides)
        value = check_value(path, value, field.annotation)
        if value != field.default:
            check_bounds(path, key, value, by_name=not own)
        return value
    if isinstance(value, str):
        value = parse(value, path)
    if value is None and (field.nested.optional or field.default is None):
        if not _beneath(f"{path}.", overrides):
            return None
        value = {}
    kind = KINDS[field.nested.kind]
    if field.nested.many:
        items = _numbered(field.nested, value, path, overrides)
        return {i: complete(kind, item, f"{path}.{i}", overrides) for i, item in items.items()}
    return complete(kind, value, path, overrides)


def _refuse_inside(path: str, overrides: Mapping[str, Any]) -> None:
    """Refuses overrides of subfields of a field that has none.

    Raises:
      ConfigError: naming the first.
    """
    if inside := _beneath(f"{path}.", overrides):
        key = path.rpartition(".")[2]
        raise ConfigError(f"{inside[0]} is not a field of a config; {key} has no such subfield")


def _numbered(
    nested: Nested, given: Any, path: str, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """A list of compositions as a dict with the keys "0", "1", ..."""
    if isinstance(given, (list, tuple)):
        given = {str(i): item for i, item in enumerate(given)}
    if not is_tree(given):
        raise ConfigError(f"{path} must be {nested}, got {quoted(given)}")
    items = _with_overrides({str(k): item for k, item in given.items()}, path, overrides)
    for i, key in enumerate(_in_order(items)):
        if key != str(i):
            raise ConfigError(f"{path}.{key} is not an item: those of {path} are numbered from 0")
    return items


def _in_order(items: Mapping[str, Any]) -> list[str]:
    """The keys "0", "1", ..., which a ConfigDict sorts as text."""
    return sorted(items, key=lambda key: (len(key), key))


def _can_be_written(default: Any, field: Field) -> bool:
    if default is REQUIRED or default is None:
        return True
    if field.nested is not None:
        return False
    try:
        check_value("", default, field.annotation)
    except ConfigError:
        return False
    return True


def _refuse_former_fields(
    section: Mapping[str, Any], schema: Mapping[str, Field], name: str, path: str
) -> None:
    """Says how to write what `copies` and `reset_every` of every estimator were.

    Raises:
      ConfigError: if one of these is given.
    """
    former = [key for key in ("copies", "reset_every") if key in section and key not in schema]
    if not former or "estimator" in section:
        return
    values = {
        key: value.literal() if isinstance(value, Written) else value
        for key, value in section.items()
    }
    period, copies = values.pop("reset_every", 0), values.pop("copies", 1)
    call = Call(name, (), values)
    if period:
        call = Call("reset_every", (period, call))
    if copies != 1:
        call = Call("average", (call,), {"copies": copies})
    raise ConfigError(
        f'{path}.{former[0]} is not a field of estimator {name}; write {path} = "{call!r}"'
    )


def _settle_learning_rate(
    section: dict[str, Any],
    schema: Mapping[str, Field],
    path: str,
    overrides: Mapping[str, Any],
) -> None:
    """A schedule stands in the place of the learning rate; what is overridden displaces the other.

    Raises:
      ConfigError: if both are given, or neither.
    """

    def given(key: str) -> bool:
        value = section.get(key, schema[key].default if key not in section else None)
        return not (value is None or value == "None")

    rate, schedule = f"{path}.learning_rate", f"{path}.schedule"
    if _beneath(schedule, overrides) and given("schedule"):
        if rate not in overrides:
            section["learning_rate"] = None
    elif rate in overrides and given("learning_rate"):
        section["schedule"] = None
    if given("schedule"):
        section.setdefault("learning_rate", None)
    if given("learning_rate") and given("schedule"):
        raise ConfigError(f"{schedule} is in the place of {rate}: give one of them")
    if not (given("learning_rate") or given("schedule")):
        raise ConfigError(f"{rate} is missing (a number), or {schedule} in its place")


def _call(factory: Any, name: str, arguments: dict[str, Any], path: str) -> Any:
    try:
        return factory(**arguments)
    except (ConfigError, DataError, UnsupportedCellError):
        raise  # They say already what to do.
    except Exception as error:
        # An ImportError of the library names the extra to install.
        if type(error) in (ValueError, ImportError):
            raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
        raise ConfigError(f"{path}: {name or path} fails: {one_line(error)}") from error


def _make_list(
    kind: Kind,
    items: Mapping[str, Any],
    path: str,
    floats: Mapping[str, Any],
    supplied: dict[str, Any],
) -> list[Any]:
    made: list[Any] = []
    for i in _in_order(items):
        made.append(make(kind, items[i], f"{path}.{i}", floats, **supplied))
        if kind.type is Cell and len(made) < len(items) and "input_size" in supplied:
            size = output_size(made[-1], supplied["input_size"], f"{path}.{i}")
            supplied = {**supplied, "input_size": size}
    return made


def _as_call(kind: Kind, section: Mapping[str, Any]) -> Call:
    name = str(section.get("name", ""))
    try:
        factory = find(kind, name, "")
    except ConfigError:
        return Call(name, (), {key: value for key, value in section.items() if key != "name"})
    schema, leading = fields(kind, factory), positional(kind, factory)[:1]
    first: list[Any] = []
    keywords: dict[str, Any] = {}
    # In the order of the signature: a ConfigDict sorts its fields.
    for key in sorted(section, key=[*schema, *section].index):
        value, field = section[key], schema.get(key, Field(Any, REQUIRED))
        plain = isinstance(field.default, (int, float, str, tuple, type(None)))
        if key == "name" or (plain and value == field.default):
            continue
        if field.nested is not None and value is not None:
            value = _nested_calls(field.nested, value)
        if field.nested is not None and [key] == leading:
            first.append(value)
        else:
            keywords[key] = value
    return Call(name, tuple(first), keywords)


def _nested_calls(nested: Nested, value: Any) -> Any:
    kind = KINDS[nested.kind]
    if isinstance(value, str):
        return parse(value, "")
    if nested.many:
        items = [value[i] for i in _in_order(value)] if hasattr(value, "values") else value
        return [item if isinstance(item, str) else _as_call(kind, item) for item in items]
    return _as_call(kind, value)
