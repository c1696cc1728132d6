"""A study: a sweep of named methods on one or more tasks, at several scales.

It is a config file, configs/reproduce_NAME.py, that defines beside `get_config`:

- `get_methods() -> {name: overrides}`, the methods, by the names of the papers;
- `get_sweep(scale) -> [overrides, ...]`, the trials, each with the overrides of one of the methods. A
  larger scale has the same trials with more steps, and more of them, so that it continues a smaller
  one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import config as configs

NAMES = ("copy", "ptb", "long", "budget")
SCALES = ("smoke", "cpu", "full")


class Study(NamedTuple):
    """A study.

    Attributes:
      name: one of NAMES.
      path: of its config file.
      config: that the trials override.
      methods: the overrides of each method, by name.
      trials: the overrides of each trial, at one scale.
    """

    name: str
    path: str
    config: Any
    methods: Mapping[str, Mapping[str, Any]]
    trials: list[dict[str, Any]]

    def method_of(self, overrides: Mapping[str, Any]) -> str:
        """The method of a trial: the one with the most overrides that are all among the trial's."""
        among = [
            name
            for name, own in self.methods.items()
            if all(key in overrides and overrides[key] == value for key, value in own.items())
        ]
        return max(among, key=lambda name: len(self.methods[name]))

    def require_config(self, path: str) -> None:
        """Refuses another config file than its own, which would be ignored.

        Raises:
          ConfigError: if the path is of another one.
        """
        if configs.find_file(path) != configs.find_file(self.path):
            raise ConfigError(f"the config of the study {self.name} is {self.path}, got {path}")

    def first(self, methods: Sequence[str]) -> Study:
        """The study with the trials of some of its methods before those of the others.

        Raises:
          ConfigError: if it has no such method.
        """
        self._require("--first", methods, self.methods)

        def place(trial: Mapping[str, Any]) -> int:
            method = self.method_of(trial)
            return methods.index(method) if method in methods else len(methods)

        return self._replace(trials=sorted(self.trials, key=place))

    def only(
        self, methods: Sequence[str] = (), tasks: Sequence[str] = (), seeds: Sequence[int] = ()
    ) -> Study:
        """The study with the trials of some methods, tasks and seeds; of all where none is given.

        Raises:
          ConfigError: if it has no such method, task or seed, or none of these together.
        """
        kept = self.trials
        for flag, wanted, of in (
            ("--only", methods, self.method_of),
            ("--only_task", tasks, lambda trial: trial.get("task", "one task alone")),
            ("--only_seed", seeds, lambda trial: trial.get("seed", 0)),
        ):
            if wanted:
                self._require(flag, wanted, dict.fromkeys(map(of, self.trials)))
                kept = [trial for trial in kept if of(trial) in wanted]
        if not kept:
            raise ConfigError(
                f"the study {self.name} has no trial of "
                + " and ".join(", ".join(map(str, own)) for own in (methods, tasks, seeds) if own)
            )
        return self._replace(trials=kept)

    def _require(self, flag: str, wanted: Iterable[Any], known: Iterable[Any]) -> None:
        for name in wanted:
            if name not in known:
                listed = "; ".join(map(str, known))
                raise ConfigError(f"{flag}: the study {self.name} has {listed}, but no {name!r}")


class Extent(NamedTuple):
    """How long and how often a method is run.

    Attributes:
      steps: time steps.
      seeds: their number.
    """

    steps: int
    seeds: int


def full_extents(name: str) -> dict[str, Extent]:
    """What the full scale of a study is, by method.

    Raises:
      ConfigError: if there is no such study.
    """
    study = load(name, SCALES[-1])
    trials: dict[str, list[dict[str, Any]]] = {}
    for trial in study.trials:
        trials.setdefault(study.method_of(trial), []).append(trial)
    return {
        method: Extent(
            max(trial["num_steps"] for trial in own), len({trial.get("seed", 0) for trial in own})
        )
        for method, own in trials.items()
    }


def path_of(name: str) -> str:
    """The config file of a study.

    Raises:
      ConfigError: if there is no such study.
    """
    if name not in NAMES:
        raise ConfigError(f"--study must be one of {', '.join(NAMES)}, got {name!r}")
    return f"configs/reproduce_{name}.py"


def load(name: str, scale: str) -> Study:
    """Reads a study from its config file.

    Args:
      name: one of NAMES.
      scale: one of SCALES.

    Raises:
      ConfigError: if there is no such study or scale.
    """
    path = path_of(name)
    if scale not in SCALES:
        raise ConfigError(f"--scale must be one of {', '.join(SCALES)}, got {scale!r}")
    return Study(
        name=name,
        path=path,
        config=configs.call(path, "get_config"),
        methods=configs.call(path, "get_methods"),
        trials=configs.call(path, "get_sweep", scale),
    )
