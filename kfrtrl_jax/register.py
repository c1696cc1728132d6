"""Names for your own cells, estimators, tasks and optimizers, which configs and text then know.

A registered factory is a function that makes the thing; its arguments are the fields of its section
in a config, as those of the library's factories are:

    kf.register.cell("my_cell", my_cell)  # my_cell(*, input_size, hidden_size) -> Cell
    kf.register.estimator("my_estimator", my_estimator)

Then `--config.cell="my_cell(hidden_size=64)"` finds the one, and "average(my_estimator, copies=4)",
given to `make_learner`, the other. A name belongs to the process that registered it; a config that
other processes read, such as those of a sweep on a cluster, rather names "module:name", which needs no
registration. A function that is defined and registered again, as by a notebook, takes its own place.
"""

from __future__ import annotations

from collections.abc import Callable

import optax

from kfrtrl_jax.base import Cell, CreditEstimator, InfluenceEstimator, Task
from kfrtrl_jax.control import Control


def cell(name: str, factory: Callable[..., Cell]) -> None:
    """Registers a cell.

    Args:
      name: an identifier that nothing in the library has.
      factory: makes it; it takes `input_size` if it needs the length of its input.

    Raises:
      ValueError: if the name exists or is no identifier, or if the factory is none.
    """
    _register("cell", name, factory)


def estimator(name: str, factory: Callable[..., InfluenceEstimator]) -> None:
    """Registers an estimator, or a combinator: arguments of type `InfluenceEstimator` are estimators.

    Args:
      name: an identifier that nothing in the library has.
      factory: makes it.

    Raises:
      ValueError: as for `cell`.
    """
    _register("estimator", name, factory)


def credit(name: str, factory: Callable[..., CreditEstimator]) -> None:
    """Registers a credit estimator.

    Args:
      name: an identifier that nothing in the library has.
      factory: makes it.

    Raises:
      ValueError: as for `cell`.
    """
    _register("credit", name, factory)


def task(name: str, factory: Callable[..., Task | Control]) -> None:
    """Registers a task.

    Args:
      name: an identifier that nothing in the library has.
      factory: makes it.

    Raises:
      ValueError: as for `cell`.
    """
    _register("task", name, factory)


def optimizer(name: str, factory: Callable[..., optax.GradientTransformation]) -> None:
    """Registers an optimizer of {"cell": ..., "readout": ...}.

    Args:
      name: an identifier that nothing in the library has.
      factory: makes it.

    Raises:
      ValueError: as for `cell`.
    """
    _register("optimizer", name, factory)


def _register(word: str, name: str, factory: Callable[..., object]) -> None:
    # What reads configs and text is imported only where there is some.
    from kfrtrl_jax._src.compositions import factories

    factories.register(word, name, factory)


__all__ = ["cell", "credit", "estimator", "optimizer", "task"]
