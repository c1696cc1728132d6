"""The exceptions that the library raises."""

from kfrtrl_jax._src.errors import ConfigError, DataError, UnsupportedCellError, WorkdirError

__all__ = [
    "ConfigError",
    "DataError",
    "UnsupportedCellError",
    "WorkdirError",
]
