"""Estimators by the text that describes them: "ok(rank=8)", "average(kf_rtrl, copies=4)"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kfrtrl_jax._src.compositions import composed
from kfrtrl_jax._src.compositions.factories import KINDS, fields, find
from kfrtrl_jax._src.compositions.values import quoted
from kfrtrl_jax.base import InfluenceEstimator
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.estimators import UNBIASED


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
    """Reads an estimator, written as in configs (see `_src/compositions/notation.py`).

    A combinator claims to be unbiased if it preserves unbiasedness and all estimators in it claim it.

    Raises:
      ConfigError: if there is no estimator of that name, or if it does not take these arguments.
    """
    kind = KINDS["estimator"]
    try:
        section = composed.complete(kind, text, "estimator")
        estimator = composed.make(kind, section, "estimator")
    except ConfigError as error:
        raise ConfigError(f"estimator {quoted(text)}: {error}") from None
    return Named(text, estimator, _claims_unbiased(section))


def _claims_unbiased(section: Mapping[str, Any]) -> bool:
    kind = KINDS["estimator"]
    parts: list[Mapping[str, Any]] = []
    for key, field in fields(kind, find(kind, section["name"], "estimator")).items():
        if field.nested is not None and field.nested.kind == "estimator":
            parts += section[key].values() if field.nested.many else [section[key]]
    return section["name"] in UNBIASED and all(map(_claims_unbiased, parts))
