"""Experiments on problems of control: acting in environments, and learning by an actor-critic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from kfrtrl_jax import control, learning, linearization
from kfrtrl_jax._src.compositions import composed
from kfrtrl_jax.base import Array
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training.segments import (
    About,
    RunState,
    Segments,
    Sums,
    Words,
    averaged,
    learning_rate,
)
from kfrtrl_jax.training.starting import Start


class Acted(NamedTuple):
    """The task's part of a run's state.

    Attributes:
      agent: its state without the learner's.
      episodes: how many have ended so far.
    """

    agent: control.AgentState
    episodes: Array


def make_acting(
    config: Any,
    problem: control.Control,
    make: Callable[..., Any],
    start: Start | None = None,
) -> Segments:
    """The run of an actor-critic.

    Args:
      config: the resolved config.
      problem: of its section "task".
      make: (section, **supplied) -> what the section names.
      start: the parameters to start from.

    Raises:
      ConfigError: if the config has a credit, segments of several steps or on_nonfinite = "skip".
    """
    _check(config)
    environment, lanes = problem.environment, problem.batch_size
    cell = make("cell", input_size=environment.observation_size)
    size = composed.output_size(cell, environment.observation_size, "config.cell")
    readout = make("readout", input_size=size, output_size=environment.num_actions + 1)
    if start is not None:
        cell, readout = start.network(cell, readout)
    example = jnp.zeros(environment.observation_size)
    learn = learning.make_learner(
        cell,
        readout,
        make("estimator"),
        make("optimizer"),
        batch_size=1,
        window=config.window,
        immediate=config.immediate,
        example_input=example,
        loss=control.objective(problem.settings),
        check=False,
    )
    agent = control.actor_critic(cell, readout, learn, environment, problem.settings, lanes)

    def init(key: Array) -> RunState:
        agent_key, key = jax.random.split(key)
        whole = agent.init(agent_key)
        zero = jnp.zeros(())
        acted = Acted(whole._replace(learner=()), jnp.zeros((), jnp.int32))
        return RunState(whole.learner, acted, jnp.zeros(0), key, jnp.zeros((), jnp.int32), zero)

    def advance(state: RunState) -> tuple[RunState, Sums]:
        whole, report = agent.step(state.task.agent._replace(learner=state.learner))
        loss, ended = jnp.square(report.error), jnp.sum(report.finished, dtype=jnp.int32)
        acted = Acted(whole._replace(learner=()), state.task.episodes + ended)
        new = state._replace(
            learner=whole.learner,
            task=acted,
            step=state.step + 1,
            running_loss=averaged(state.running_loss, jnp.mean(loss)[None], jnp.ones(1)),
        )
        returns = jnp.sum(report.finished * report.returns)
        return new, Sums(
            jnp.sum(loss), jnp.asarray(1.0 * lanes), returns, 1.0 * ended, report.gradient_norm
        )

    def diagnostics(state: RunState) -> dict[str, Array]:
        axes = control.lane_axes()
        of_lanes = jax.vmap(learn.diagnostics, in_axes=(axes,))(state.learner)
        return {name: jnp.mean(value) for name, value in of_lanes.items()}

    def evaluate(*_: Any) -> NoReturn:
        raise NotImplementedError("a problem of control has no held-out stream")

    return Segments(
        init=init,
        advance=advance,
        metrics=lambda state: {"episodes": state.task.episodes, **learning_rate(state)},
        diagnostics=diagnostics,
        about=About(
            evaluate=evaluate,
            structure=learn.linearizer.structure,
            words=Words("mean square TD error", "return"),
            held_out={},
            check=lambda: linearization.check(cell, example),
        ),
    )


def _check(config: Any) -> None:
    if config.segment_length != 1:
        raise ConfigError(
            "an actor-critic learns at every step: it needs segment_length = 1 (a window may be "
            f"longer), got {config.segment_length}"
        )
    if config.credit.name != "none":
        raise ConfigError('an actor-critic has no segments for a credit: use credit.name = "none"')
    if config.on_nonfinite != "stop":
        raise ConfigError(
            "an actor-critic cannot drop a step, as its environments have moved on: use "
            'on_nonfinite = "stop"'
        )
