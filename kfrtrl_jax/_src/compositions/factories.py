"""What configs can name: the library's factories, and a user's own by import path.

The signature of a factory is the schema of its section in a config: its arguments are the fields.
"""

from __future__ import annotations

import collections.abc
import difflib
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from kfrtrl_jax._src import readouts
from kfrtrl_jax._src.base import Cell, CreditEstimator, InfluenceEstimator, Readout, Task
from kfrtrl_jax._src.cells.registry import CELLS
from kfrtrl_jax._src.compositions.notation import is_import_path
from kfrtrl_jax._src.compositions.values import one_line, quoted, suggest
from kfrtrl_jax._src.control.problem import Control
from kfrtrl_jax._src.credit.registry import CREDIT
from kfrtrl_jax._src.errors import ConfigError
from kfrtrl_jax._src.estimators.registry import COMBINATORS, ESTIMATORS
from kfrtrl_jax._src.optimizers import OPTIMIZERS, REFUSED, SCHEDULES, Schedule
from kfrtrl_jax._src.tasks.registry import TASKS

REQUIRED = inspect.Parameter.empty

Factory = Callable[..., Any]


class Kind(NamedTuple):
    """A kind of thing that configs name.

    Attributes:
      word: "cell".
      type: what its factories make, or several such types.
      factories: the library's, by name; a kind without names has a single factory "".
      supplied: arguments of the factories that do not come from the config.
      default: the name of the default factory; None if the config must name one.
      refused: names that users may expect, and why they are not among them.
      shown: so many names are shown on a screen of help; 0 for all.
    """

    word: str
    type: type | tuple[type, ...]
    factories: Mapping[str, Factory]
    supplied: frozenset[str] = frozenset()
    default: str | None = None
    refused: Mapping[str, str] = types.MappingProxyType({})
    shown: int = 0

    def __str__(self) -> str:
        return f"{'an' if self.word[0] in 'aeiou' else 'a'} {self.word}"


class Nested(NamedTuple):
    """The type of an argument that is itself made by a factory, or a list of such things.

    Attributes:
      kind: of the thing, by its word.
      many: whether it is a list.
      optional: whether it may be None instead.
    """

    kind: str
    many: bool = False
    optional: bool = False

    def __str__(self) -> str:
        return f"a list of {self.kind}s" if self.many else str(KINDS[self.kind])


class Field(NamedTuple):
    """An argument of a factory.

    Attributes:
      annotation: its type; Any without one.
      default: REQUIRED if it has none.
      nested: if it is made by a factory itself.
    """

    annotation: Any
    default: Any
    nested: Nested | None = None


# What users have registered, by the word of its kind and its name.
REGISTERED: dict[str, dict[str, Factory]] = {
    word: {} for word in ("cell", "estimator", "credit", "task", "optimizer")
}


def _known(word: str, *factories: dict[str, Factory]) -> Mapping[str, Factory]:
    """The library's factories of a kind, and those registered later."""
    return collections.ChainMap(REGISTERED[word], *factories)


KINDS: dict[str, Kind] = {
    kind.word: kind
    for kind in (
        Kind("cell", Cell, _known("cell", CELLS), frozenset({"input_size"})),
        Kind(
            "readout",
            Readout,
            {"": readouts.linear},
            frozenset({"input_size", "output_size"}),
        ),
        Kind("estimator", InfluenceEstimator, _known("estimator", COMBINATORS, ESTIMATORS)),
        Kind("credit", CreditEstimator, _known("credit", CREDIT), default="none"),
        Kind("task", (Task, Control), _known("task", TASKS)),
        Kind(
            "optimizer",
            optax.GradientTransformation,
            _known("optimizer", OPTIMIZERS),
            refused=REFUSED,
            shown=6,
        ),
        Kind("schedule", Schedule, SCHEDULES, refused=REFUSED),
    )
}


def find(kind: Kind, name: Any, path: str) -> Factory:
    """The factory of a name, one of the library's or "module:name".

    Args:
      kind: of what it makes.
      name: as given.
      path: of the section in the config, for messages.

    Raises:
      ConfigError: if there is no such factory, or if it cannot be imported.
    """
    if isinstance(name, str) and name in kind.factories:
        return kind.factories[name]
    if isinstance(name, str) and ":" in name:
        return _import(kind, name, path)
    if isinstance(name, str) and "(" in name:
        raise ConfigError(
            f"{path}.name is a name alone, got {quoted(name)}; give it to {path} itself"
        )
    if isinstance(name, str) and name in kind.refused:
        raise ConfigError(f"{path}.name cannot be {name}, which {kind.refused[name]}")
    suggestion = suggest(name if isinstance(name, str) else quoted(name), kind.factories)
    raise ConfigError(f"{path}.name: there is no {kind.word} {quoted(name)}{suggestion}")


def is_own(name: str) -> bool:
    """Whether the name is that of a user's factory."""
    return ":" in name or any(name in names for names in REGISTERED.values())


def register(word: str, name: str, factory: Factory) -> None:
    """Gives a user's factory a name that configs and text know.

    Args:
      word: of its kind.
      name: a new one among those of all kinds.
      factory: its arguments are the fields of its section in a config.

    Raises:
      ValueError: if the name exists, but for that of the same function, defined again as in a notebook;
        if it is none; or if the factory is no function with a signature.
    """
    kind = KINDS[word]
    if not (isinstance(name, str) and name.isidentifier()) or name in ("True", "False", "None"):
        raise ValueError(
            f"the name of {kind} must be an identifier, such as my_{word}, got {name!r}"
        )
    again = _origin(REGISTERED[word].get(name)) == _origin(factory) != (None, None)
    for other in KINDS.values():
        if name in other.factories and not again:
            raise ValueError(f"there is {other} {name} already: register yours by another name")
    if isinstance(factory, kind.type) or not callable(factory):
        raise ValueError(
            f"register a function that makes {kind}, such as lambda: ..., got a "
            f"{type(factory).__name__}"
        )
    _require_signature(name, factory)
    REGISTERED[word][name] = factory


def _origin(factory: Any) -> tuple[str | None, str | None]:
    """The module and the name of a function where it was defined."""
    return getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)


def fields(kind: Kind, factory: Factory) -> dict[str, Field]:
    """The arguments of a factory that a config gives, by name; `name` is that of the factory itself."""
    hints = _hints(factory)
    return {
        key: Field(hints.get(key, Any), parameter.default, _nested(hints.get(key)))
        for key, parameter in inspect.signature(factory).parameters.items()
        if key not in {*kind.supplied, "name"} and parameter.kind not in _VARIABLE
    }


def positional(kind: Kind, factory: Factory) -> list[str]:
    """The names of the arguments that can be given by position, in order."""
    parameters = inspect.signature(factory).parameters
    return [
        key
        for key in fields(kind, factory)
        if parameters[key].kind is not parameters[key].KEYWORD_ONLY
    ]


def supplied_names(kind: Kind, factory: Factory) -> list[str]:
    """The arguments of a factory that do not come from the config."""
    return [key for key in inspect.signature(factory).parameters if key in kind.supplied]


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _import(kind: Kind, name: str, path: str) -> Factory:
    if not is_import_path(name):
        raise ConfigError(f"{path}.name: {quoted(name)} is not of the form module:name")
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(module := importlib.import_module(module_name), attribute, REQUIRED)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{path}.name: importing {module_name} fails: {error}") from error
        raise ConfigError(
            f"{path}.name: there is no module {module_name} in the current directory or among the "
            f"installed packages"
        ) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ConfigError(
            f"{path}.name: importing {module_name} fails: {one_line(error)}"
        ) from error
    if found is REQUIRED:
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{path}.name: {module_name} has no {attribute}{hint}")
    if not callable(found):
        what = f"{kind} itself" if isinstance(found, kind.type) else f"a {type(found).__name__}"
        raise ConfigError(f"{path}.name: {name} must be a function that makes {kind}, got {what}")
    _require_signature(f"{path}.name: {name}", found)
    return found


def _require_signature(name: str, factory: Factory) -> None:
    try:
        inspect.signature(factory)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} has no signature that names its arguments") from None


def _hints(factory: Factory) -> dict[str, Any]:
    """The types of the arguments; none where those of a user's factory cannot be resolved."""
    function: Any = factory
    if inspect.isclass(factory):
        function = factory.__init__ if "__init__" in vars(factory) else factory
    elif isinstance(factory, functools.partial):
        function = factory.func
    elif not inspect.isroutine(factory):
        function = type(factory).__call__
    try:
        return _evaluated_hints(function)
    except (TypeError, NameError, AttributeError):
        return {}


@functools.lru_cache(maxsize=1024)
def _evaluated_hints(function: Any) -> dict[str, Any]:
    """Kept, as evaluating the text of annotations is a good part of what resolving a config takes."""
    return typing.get_type_hints(function)


def _nested(annotation: Any) -> Nested | None:
    """What an annotation such as Cell, Cell | None or Sequence[Cell] asks for, if it is of a kind."""
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        found = [nested for option in options if (nested := _nested(option))]
        return found[0]._replace(optional=type(None) in options) if found else None
    if origin in (tuple, list, collections.abc.Sequence) and options:
        inner = _nested(options[0])
        return inner and inner._replace(many=True)
    words = [word for word, kind in KINDS.items() if kind.type is annotation]
    return Nested(words[0]) if words else None
