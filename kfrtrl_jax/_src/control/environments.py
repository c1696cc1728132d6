"""Environments as pure functions of one lane, and those of gymnax among them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Key


class Transition(NamedTuple):
    """What an action leads to.

    Attributes:
      state: of the environment, at the start of the next episode if this one has ended.
      observation: of that state, [o].
      last_observation: where the action itself has led to, [o]; it differs from `observation` if the
        episode has ended.
      reward: for the action.
      terminated: whether the episode is over, so that nothing follows it.
      ended: whether it is over or was cut off by a limit of time.
    """

    state: Any
    observation: Array
    last_observation: Array
    reward: Array
    terminated: Array
    ended: Array


class Environment(NamedTuple):
    """An environment with a finite number of actions.

    Attributes:
      observation_size: o.
      num_actions: the number of actions.
      init: key -> (state, observation [o]).
      step: (key, state, action) -> transition; it starts the next episode by itself.
    """

    observation_size: int
    num_actions: int
    init: Callable[[Key], tuple[Any, Array]]
    step: Callable[[Key, Any, Array], Transition]


def from_gymnax(name: str, *, parameters: str = "", observed: tuple[int, ...] = ()) -> Environment:
    """An environment of gymnax (Lange, 2022), such as "MemoryChain-bsuite" or "CartPole-v1".

    Args:
      name: of the environment, as in gymnax.
      parameters: values of its parameters, such as "memory_length=16, max_steps_in_episode=100".
      observed: which entries of the observation the agent sees; () for all. (0, 2) hides the velocities
        of CartPole.

    Raises:
      ImportError: if gymnax is not installed.
      ValueError: if gymnax has no such environment, it has no such parameter or entry, or its actions
        are not finitely many.
    """
    try:
        import gymnax
    except ImportError:
        raise ImportError(
            "gymnax is not installed; pip install 'kfrtrl_jax[control]' brings it"
        ) from None
    if name not in gymnax.registered_envs:
        near = difflib.get_close_matches(name, gymnax.registered_envs, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "see gymnax.registered_envs"
        raise ValueError(f"gymnax has no environment {name!r}; {hint}")
    environment, defaults = gymnax.make(name)
    settings = _replaced(defaults, parameters, name)
    actions = getattr(environment.action_space(settings), "n", None)
    if actions is None:
        raise ValueError(f"the actions of {name} are not finitely many, which is not supported")

    def seen(observation: Any) -> Array:
        flat = jnp.ravel(jnp.asarray(observation, float))
        return flat[jnp.asarray(observed)] if observed else flat

    def init(key: Key) -> tuple[Any, Array]:
        observation, state = environment.reset(key, settings)
        return state, seen(observation)

    def step(key: Key, state: Any, action: Array) -> Transition:
        observation, state, reward, terminated, truncated, info = environment.step(
            key, state, action, settings
        )
        return Transition(
            state,
            seen(observation),
            seen(info["final_observation"]),
            jnp.asarray(reward, float),
            terminated,
            terminated | truncated,
        )

    whole = jax.eval_shape(environment.reset, jax.random.key(0), settings)[0].size
    wrong = [i for i in observed if not 0 <= i < whole]
    if wrong:
        raise ValueError(
            f"{name} has observations of {whole} entries, there is no entry {wrong[0]}"
        )
    return Environment(len(observed) or whole, int(actions), init, step)


def _replaced(defaults: Any, parameters: str, name: str) -> Any:
    """The environment's parameters with those of a text such as "memory_length=16" replaced."""
    for part in filter(None, (part.strip() for part in parameters.split(","))):
        field, _, text = (piece.strip() for piece in part.partition("="))
        if not hasattr(defaults, field) or field == "replace":
            fields = ", ".join(vars(defaults))
            raise ValueError(f"{name} has no parameter {field!r}; it has {fields}")
        default = getattr(defaults, field)
        defaults = defaults.replace(**{field: _read(field, text, type(default))})
    return defaults


def _read(field: str, text: str, kind: type) -> Any:
    """The value of a parameter."""
    readers: dict[type, Callable[[str], Any]] = {
        bool: {"True": True, "False": False}.__getitem__,
        int: int,
        float: float,
        str: str,
    }
    if kind not in readers:
        raise ValueError(f"the parameter {field} is {kind.__name__}, which cannot be set by a text")
    try:
        return readers[kind](text)
    except (KeyError, ValueError):
        expected = "True or False" if kind is bool else kind.__name__
        raise ValueError(f"the parameter {field} must be {expected}, got {text!r}") from None
