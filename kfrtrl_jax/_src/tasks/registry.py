"""Tasks by their names in configs."""

from collections.abc import Callable

from kfrtrl_jax._src.base import Task
from kfrtrl_jax._src.control.problem import Control, control
from kfrtrl_jax._src.tasks.adding import adding
from kfrtrl_jax._src.tasks.anbn import anbn
from kfrtrl_jax._src.tasks.chaos import henon, lorenz, mackey_glass
from kfrtrl_jax._src.tasks.cognitive import context_integration, delayed_match
from kfrtrl_jax._src.tasks.conditioning import (
    noisy_patterning,
    trace_conditioning,
    trace_patterning,
)
from kfrtrl_jax._src.tasks.copy import copy
from kfrtrl_jax._src.tasks.copy_fixed import copy_fixed
from kfrtrl_jax._src.tasks.flip_flop import flip_flop
from kfrtrl_jax._src.tasks.mnist import mnist1d, sequential_mnist
from kfrtrl_jax._src.tasks.recall import memory_chain, t_maze
from kfrtrl_jax._src.tasks.text import penn_treebank, text

TASKS: dict[str, Callable[..., Task | Control]] = {
    "copy": copy,
    "copy_fixed": copy_fixed,
    "adding": adding,
    "anbn": anbn,
    "flip_flop": flip_flop,
    "delayed_match": delayed_match,
    "context_integration": context_integration,
    "t_maze": t_maze,
    "memory_chain": memory_chain,
    "text": text,
    "penn_treebank": penn_treebank,
    "henon": henon,
    "mackey_glass": mackey_glass,
    "lorenz": lorenz,
    "trace_conditioning": trace_conditioning,
    "trace_patterning": trace_patterning,
    "noisy_patterning": noisy_patterning,
    "sequential_mnist": sequential_mnist,
    "mnist1d": mnist1d,
    "control": control,
}
