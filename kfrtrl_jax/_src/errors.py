"""Errors that a user can cause. Each message is one line: what was given and what would be right."""


class ConfigError(ValueError):
    """An experiment config that cannot be run."""


class DataError(ValueError):
    """A data set that is missing, incomplete or not what it claims to be."""


class WorkdirError(ValueError):
    """A working directory that another run holds, or that belongs to another config."""


class UnsupportedCellError(ValueError):
    """A cell whose step has no structure that the chosen estimator can use."""
