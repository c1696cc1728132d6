"""Online training of recurrent networks: KF-RTRL and the estimators it is compared with.

JAX and the library are imported when the first of the names below is used, and not before: a program
handles signals, and answers `--help`, from its first moment (`kfrtrl_jax.programs`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kfrtrl_jax._public import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """A public name, with which all of them are imported."""
    if name == "__all__" or not name.startswith("_"):
        public = importlib.import_module("kfrtrl_jax._public")
        # While it is imported, it asks here for modules that it has not imported yet.
        if name in ["__all__", *getattr(public, "__all__", ())]:
            globals()[name] = getattr(public, name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__getattr__("__all__"), "__version__"]
