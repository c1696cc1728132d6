"""Control: environments, and the actor-critic that learns to act in them online."""

from kfrtrl_jax._src.control.actor_critic import (
    ActorCritic,
    AgentState,
    Settings,
    StepReport,
    actor_critic,
    objective,
)
from kfrtrl_jax._src.control.environments import Environment, Transition, from_gymnax

__all__ = [
    "ActorCritic",
    "AgentState",
    "Environment",
    "Settings",
    "StepReport",
    "Transition",
    "actor_critic",
    "from_gymnax",
    "objective",
]
