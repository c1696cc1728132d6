"""Control: environments, and the actor-critic that learns to act in them online."""

from kfrtrl_jax._src.control.actor_critic import (
    ActorCritic,
    AgentState,
    StepReport,
    actor_critic,
    lane_axes,
    objective,
)
from kfrtrl_jax._src.control.environments import Environment, Transition, from_gymnax
from kfrtrl_jax._src.control.problem import Control, Settings, control

__all__ = [
    "ActorCritic",
    "AgentState",
    "Control",
    "Environment",
    "Settings",
    "StepReport",
    "Transition",
    "actor_critic",
    "control",
    "from_gymnax",
    "lane_axes",
    "objective",
]
