"""Estimators as text: "ok(rank=8)", "average(kf_rtrl, copies=4)"."""

from __future__ import annotations

import ast
import difflib
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kfrtrl_jax.base import InfluenceEstimator
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.estimators import COMBINATORS, ESTIMATORS, UNBIASED


class Named(NamedTuple):
    """An estimator read from text.

    Attributes:
      name: the text.
      estimator: the estimator itself.
      claims_unbiased: whether the mean of its estimate should be the influence matrix.
    """

    name: str
    estimator: InfluenceEstimator
    claims_unbiased: bool


def named(text: str) -> Named:
    """Reads an estimator: a name, with arguments in brackets, by position or by keyword.

    An argument is a number, text in quotes, True, False, None, an estimator, or a list of these. A
    combinator claims to be unbiased if it preserves unbiasedness and all estimators in it claim it.

    Raises:
      ConfigError: if there is no estimator of that name, or if it does not take these arguments.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        reason = getattr(error, "msg", str(error))
        raise ConfigError(
            f'estimator {text!r} cannot be read ({reason}); write it like "ok(rank=8)" or '
            f'"average(kf_rtrl, copies=4)"'
        ) from None
    return _read(node, text)


def _read(node: ast.expr, text: str) -> Named:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        what = ast.unparse(call.func)
        raise ConfigError(f"estimator {text!r}: {what} is not the name of an estimator")
    name = call.func.id
    factory: Callable[..., InfluenceEstimator] | None = {**ESTIMATORS, **COMBINATORS}.get(name)
    if factory is None:
        near = difflib.get_close_matches(name, [*ESTIMATORS, *COMBINATORS], n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"one of {', '.join(ESTIMATORS)}"
        raise ConfigError(f"estimator {text!r}: there is no estimator {name!r}; {hint}")
    inner: list[Named] = []

    def argument(node: ast.expr) -> Any:
        if isinstance(node, (ast.Name, ast.Call)):
            inner.append(_read(node, text))
            return inner[-1].estimator
        if isinstance(node, (ast.List, ast.Tuple)):
            return [argument(part) for part in node.elts]
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError):
            raise ConfigError(
                f"estimator {text!r}: {ast.unparse(node)} is neither a value nor an estimator"
            ) from None

    if any(keyword.arg is None for keyword in call.keywords):
        raise ConfigError(f"estimator {text!r}: arguments are given one by one, without **")
    positional = [argument(node) for node in call.args]
    keywords = {str(keyword.arg): argument(keyword.value) for keyword in call.keywords}
    try:
        bound = inspect.signature(factory).bind(*positional, **keywords)
        _check(factory, bound)
        estimator = factory(*bound.args, **bound.kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"estimator {text!r}: {name}: {error}") from None
    claims = name in UNBIASED and all(part.claims_unbiased for part in inner)
    return Named(text, estimator, claims)


def _check(factory: Callable[..., Any], bound: inspect.BoundArguments) -> None:
    """Refuses arguments whose types differ from the factory's signature."""
    hints = typing.get_type_hints(factory)
    for key, value in bound.arguments.items():
        hint = hints.get(key)
        if not _fits(value, hint):
            kind = _KINDS.get(hint, str(hint).replace("typing.", ""))
            shown = "an estimator" if isinstance(value, InfluenceEstimator) else repr(value)
            raise ValueError(f"{key} must be {kind}, got {shown}")


_KINDS: dict[Any, str] = {
    InfluenceEstimator: "an estimator",
    Sequence[InfluenceEstimator]: "a list of estimators",
    Sequence[float]: "a list of numbers",
    int: "an integer",
    float: "a number",
    str: "text in quotes",
}


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Sequence:
        (inner,) = typing.get_args(hint)
        return isinstance(value, list) and all(_fits(item, inner) for item in value)
    if isinstance(value, InfluenceEstimator) or hint is InfluenceEstimator:
        return isinstance(value, InfluenceEstimator) and hint is InfluenceEstimator
    if hint in (int, bool, str):
        return type(value) is hint
    return type(value) in (int, float) if hint is float else True
