"""Compositions as text: "average(kf_rtrl, copies=4)", "stack([lru(hidden_size=64)] * 2)".

The notation is a part of Python's, and only names factories: reading a text runs nothing.

    value      number, text in quotes, True, False, None, a list or a call
    list       [value, ...], or [value, ...] * number, or (value, ...)
    call       name or name(arguments); arguments by position come before name=value
    name       of a factory of the library, or module:name of one elsewhere

In a text in quotes a backslash is an ordinary character.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from kfrtrl_jax._src.errors import ConfigError

MAX_DEPTH = 32
MAX_ITEMS = 10_000

_IDENTIFIER = r"[^\W\d]\w*"
_MODULE = rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*"
_TOKEN = re.compile(
    r"(?P<number>[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    rf"|(?P<name>{_MODULE}(?::{_IDENTIFIER})?)"
    r"|(?P<text>'[^']*'|\"[^\"]*\")"
    r"|(?P<mark>[()\[\],=*])"
)
_CONSTANTS = {"True": True, "False": False, "None": None}
_EXAMPLES = '"ok(rank=8)" or "average(kf_rtrl, copies=4)"'


@dataclasses.dataclass(frozen=True)
class Call:
    """A factory with its arguments, as read from text; its `repr` is the text."""

    name: str
    positional: Sequence[Any] = ()
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        arguments = [written(value) for value in self.positional]
        arguments += [f"{key}={written(value)}" for key, value in self.keywords.items()]
        return f"{self.name}({', '.join(arguments)})" if arguments else self.name


class Written(str):
    """A value as it stands on the command line; the field that it is for decides its type."""

    def literal(self) -> Any:
        """The value that it is written as, or the text itself if it is not written as any."""
        try:
            value = parse(str(self), "")
        except ConfigError:
            return str(self)
        return str(self) if any(isinstance(item, Call) for item in _items(value)) else value


def parse(text: str, path: str) -> Any:
    """Reads a value; a call, or a name alone, becomes a `Call`.

    Args:
      text: the text.
      path: what the text is for, which begins the message of an error.

    Raises:
      ConfigError: if it is not in the notation.
    """
    reader = _Reader(text, path)
    value = reader.value()
    if reader.position < len(text):
        reader.fail("expected the end")
    return value


def is_import_path(name: str) -> bool:
    """Whether it is of the form module:name."""
    return re.fullmatch(rf"{_MODULE}:{_IDENTIFIER}", name) is not None


def written(value: Any) -> str:
    """A value in the notation, numbers in up to six digits."""
    if isinstance(value, str):
        return f'"{value}"' if "'" in value else f"'{value}'"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        calls = len(value) > 1 and isinstance(value[0], Call)
        if calls and all(item == value[0] for item in value):
            return f"[{value[0]!r}] * {len(value)}"
        return f"[{', '.join(written(item) for item in value)}]"
    return repr(value)


class _Reader:
    """Reads a text from left to right."""

    def __init__(self, text: str, path: str):
        self.text, self.path = text, path
        self.position, self.depth = 0, 0
        self._skip_spaces()

    def fail(self, reason: str) -> Any:
        rest = self.text[self.position :]
        excerpt = repr(rest if len(rest) <= 40 else f"{rest[:37]}...")
        where = f"at {excerpt}" if rest else "at the end"
        raise ConfigError(
            f"{self.path} cannot be read: {reason} {where}; write it like {_EXAMPLES}"
        )

    def value(self) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"nested more than {MAX_DEPTH} deep")
        start = self.position
        for kind in ("number", "text", "name"):
            if (token := self._take(kind)) is not None:
                value = getattr(self, f"_{kind}")(token, start)
                break
        else:
            if self._mark("["):
                value = self._repeated(self._values("]")[0])
            elif self._mark("("):
                values, commas = self._values(")")
                value = values if commas or not values else values[0]
            else:
                value = self.fail("expected a value")
        self.depth -= 1
        return value

    def _number(self, token: str, start: int) -> int | float:
        try:
            return int(token) if re.fullmatch(r"[+-]?[\d_]+", token) else float(token)
        except ValueError:
            self.position = start
            return self.fail("expected a number that can be represented")

    def _text(self, token: str, start: int) -> str:
        del start
        return token[1:-1]

    def _name(self, token: str, start: int) -> Any:
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if "." in token and ":" not in token:
            self.position = start
            self.fail(f"{token} is not the name of a factory, and one elsewhere is module:name,")
        return self._arguments(token) if self._mark("(") else Call(token)

    def _arguments(self, name: str) -> Call:
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        while not self._mark(")"):
            start = self.position
            key = self._take("name")
            if key is not None and self._mark("="):
                if key in keywords or not key.isidentifier():
                    self.position = start
                    self.fail("expected the name of another argument")
                keywords[key] = self.value()
            else:
                self.position = start
                if keywords:
                    self.fail("expected name=value, as arguments by position come first,")
                positional.append(self.value())
            if not self._mark(","):
                if not self._mark(")"):
                    self.fail("expected , or )")
                break
        return Call(name, tuple(positional), keywords)

    def _values(self, end: str) -> tuple[list[Any], int]:
        """The values before the closing bracket, and the number of commas between them."""
        values: list[Any] = []
        commas = 0
        while not self._mark(end):
            values.append(self.value())
            if not self._mark(","):
                if not self._mark(end):
                    self.fail(f"expected , or {end}")
                break
            commas += 1
        return values, commas

    def _repeated(self, values: list[Any]) -> list[Any]:
        if not self._mark("*"):
            return values
        start = self.position
        token = self._take("number")
        times = self._number(token, start) if token else None
        size = sum(1 for _ in _items(values)) + len(values)
        if not isinstance(times, int) or not 0 <= times * size <= 2 * MAX_ITEMS:
            self.position = start
            self.fail(f"expected how often to repeat, with at most {MAX_ITEMS} items in all,")
        assert isinstance(times, int)
        return values * times

    def _take(self, kind: str) -> str | None:
        match = _TOKEN.match(self.text, self.position)
        if match is None or match.lastgroup != kind:
            return None
        self.position = match.end()
        self._skip_spaces()
        return match[0]

    def _mark(self, mark: str) -> bool:
        if not self.text.startswith(mark, self.position):
            return False
        self.position += 1
        self._skip_spaces()
        return True

    def _skip_spaces(self) -> None:
        while self.text[self.position : self.position + 1].isspace():
            self.position += 1


def _items(value: Any) -> Iterable[Any]:
    """A value that is no list, or all such values in a list."""
    if not isinstance(value, list):
        return [value]
    return (item for part in value for item in _items(part))
