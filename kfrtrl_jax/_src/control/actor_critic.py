"""Streaming actor-critic with eligibility traces, AC(lambda), for a recurrent network.

At every time step the network sees an observation o_t, draws an action a_t from its policy pi and tells
the value v_t of its state. The environment answers with a reward, and the error of temporal differences

    delta_t = r_t + gamma v_{t+1} - v_t

times the trace

    z_t = gamma lambda z_{t-1} + grad(log pi(a_t) + b v_t + e sign(delta_t) H_t)

is the direction in which the parameters move, H_t being the policy's entropy (Sutton and Barto, 2018,
section 13.6; the sign before the entropy is that of Elsayed, Vasan and Mahmood, 2024,
arXiv:2410.14606). The gradient through the recurrent network comes from an influence estimator. As
delta differs between lanes, so do the traces: every lane has a learner of its own, of one lane, at the
same parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from kfrtrl_jax._src.base import Array, Batch, Cell, Key, Readout
from kfrtrl_jax._src.control.environments import Environment, Transition
from kfrtrl_jax._src.control.problem import Settings
from kfrtrl_jax._src.lanes import along, initial_lanes, restarted
from kfrtrl_jax._src.learning import trees
from kfrtrl_jax._src.learning.learner import predict
from kfrtrl_jax._src.learning.types import Learner, LearnerState


class AgentState(NamedTuple):
    """All that acting and learning carry from one time step to the next.

    Attributes:
      learner: its parameters and optimizer are common to all lanes; all else is [B, ...] of one lane.
      traces: z of each lane, like the parameters with a leading axis B.
      environment: the environments' states, [B, ...].
      observation: [B, o].
      begins: [B], whether the observation is the first of an episode.
      returns: [B], the sum of the episode's rewards so far.
      key: a PRNG key.
    """

    learner: Any
    traces: Any
    environment: Any
    observation: Float[Array, "B o"]
    begins: Bool[Array, " B"]
    returns: Float[Array, " B"]
    key: Key


class StepReport(NamedTuple):
    """One time step.

    Attributes:
      error: delta of each lane, [B].
      finished: [B], whether the lane's episode ended with this step.
      returns: [B], the sum of the rewards of the episode so far, with this step's.
      gradient_norm: of the direction given to the optimizer.
    """

    error: Float[Array, " B"]
    finished: Bool[Array, " B"]
    returns: Float[Array, " B"]
    gradient_norm: Float[Array, ""]


class ActorCritic(NamedTuple):
    """Acting and learning as pure functions.

    Attributes:
      init: key -> state.
      step: state -> (state, report): one time step of all lanes.
    """

    init: Callable[[Key], AgentState]
    step: Callable[[AgentState], tuple[AgentState, StepReport]]


def lane_axes() -> Any:
    """The axes of a learner's state as `jax.vmap` takes them: lanes share parameters and optimizer."""
    shared: dict[str, Any] = {"parameters": None, "optimizer_state": None}
    return LearnerState(**{name: shared.get(name, 0) for name in LearnerState._fields})


def objective(settings: Settings) -> Callable[[Any, Any], Float[Array, ""]]:
    """(prediction, (action, sign of delta)) -> the negative of what z sums the gradient of.

    The prediction is the policy's logits followed by the value, [actions + 1].
    """

    def loss(prediction: Float[Array, " outputs"], target: tuple[Array, Array]) -> Float[Array, ""]:
        action, sign = target
        log_policy, value = jax.nn.log_softmax(prediction[:-1]), prediction[-1]
        entropy = -jnp.sum(jnp.exp(log_policy) * log_policy)
        weight = settings.entropy_weight * sign
        return -(log_policy[action] + settings.value_weight * value + weight * entropy)

    return loss


def actor_critic(
    cell: Cell,
    readout: Readout,
    learner: Learner,
    environment: Environment,
    settings: Settings,
    batch_size: int,
) -> ActorCritic:
    """Builds the agent.

    Args:
      cell: the recurrent network; its input is the observation, [o].
      readout: to logits and value, [actions + 1].
      learner: of one lane and segments of one step, its loss `objective(settings)`, with any estimator
        and window.
      environment: of one lane.
      settings: the constants.
      batch_size: B, the number of environments.
    """

    def init(key: Key) -> AgentState:
        learner_key, environment_key, key = jax.random.split(key, 3)
        one = learner.init(learner_key)
        carry = jax.tree.map(lambda x: x[:, None], initial_lanes(cell, batch_size))
        lanes = _spread(one._replace(parameters={}, optimizer_state=(), carry=()), batch_size)
        traces = jax.tree.map(jnp.zeros_like, trees.partition(one.parameters)[0])
        states, observations = jax.vmap(environment.init)(
            jax.random.split(environment_key, batch_size)
        )
        return AgentState(
            lanes._replace(
                parameters=one.parameters,
                optimizer_state=one.optimizer_state,
                carry=carry,
                key=jax.random.split(one.key, batch_size),
            ),
            _spread(traces, batch_size),
            states,
            observations,
            jnp.ones(batch_size, bool),
            jnp.zeros(batch_size),
            key,
        )

    def seen(parameters: Any, carry: Any, observation: Array) -> tuple[Any, Array]:
        """(the new carry, logits and value) of all lanes."""
        return jax.vmap(lambda c, x: predict(cell, readout, parameters, c, x))(carry, observation)

    def acted(state: AgentState, key: Key) -> tuple[Array, Transition, Array]:
        """(the actions, what they lead to, delta) of all lanes."""
        act_key, step_key = jax.random.split(key)
        parameters = state.learner.parameters
        carry = jax.tree.map(lambda x: x[:, 0], state.learner.carry)
        carry, prediction = seen(
            parameters, restarted(cell, carry, state.begins), state.observation
        )
        action = jax.random.categorical(act_key, prediction[:, :-1])
        transition = jax.vmap(environment.step)(
            jax.random.split(step_key, batch_size), state.environment, action
        )
        _, following = seen(parameters, carry, transition.last_observation)
        future = jnp.where(transition.terminated, 0, settings.discount * following[:, -1])
        return action, transition, transition.reward + future - prediction[:, -1]

    def gradients(state: AgentState, action: Array, delta: Array) -> tuple[Any, LearnerState]:
        """(the objective's gradient for each lane, the learner's state after the step)."""
        segment = Batch(state.observation, (action, jnp.sign(delta)), state.begins)
        axes = lane_axes()
        gradient, after, _ = jax.vmap(learner.gradient, in_axes=(axes, 0), out_axes=(0, axes, 0))(
            state.learner, jax.tree.map(lambda x: x[:, None, None], segment)
        )
        return gradient, after

    def step(state: AgentState) -> tuple[AgentState, StepReport]:
        key, own = jax.random.split(state.key)
        action, transition, delta = acted(state, own)
        gradient, learner_state = gradients(state, action, delta)

        def traced(old: Array, new: Array) -> Array:
            begins = along(state.begins, old)
            decay = settings.discount * settings.trace_decay
            return jnp.where(begins, 0, decay * old) + new

        traces = jax.tree.map(traced, state.traces, gradient)
        direction = jax.tree.map(lambda z: jnp.mean(along(delta, z) * z, axis=0), traces)
        learner_state, norm = learner.apply_gradient(learner_state, direction)
        returns = state.returns + transition.reward
        new = AgentState(
            learner_state,
            traces,
            transition.state,
            transition.observation,
            transition.ended,
            jnp.where(transition.ended, 0, returns),
            key,
        )
        return new, StepReport(delta, transition.ended, returns, norm)

    return ActorCritic(init, step)


def _spread(tree: Any, batch_size: int) -> Any:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch_size, *x.shape)), tree)
