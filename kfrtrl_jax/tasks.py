"""Tasks: streams of sequences, generated on the device inside the scan."""

from kfrtrl_jax._src.base import Batch, Score, Task
from kfrtrl_jax._src.tasks import download
from kfrtrl_jax._src.tasks.adding import adding
from kfrtrl_jax._src.tasks.anbn import anbn
from kfrtrl_jax._src.tasks.chaos import henon, lorenz, mackey_glass
from kfrtrl_jax._src.tasks.cognitive import context_integration, delayed_match
from kfrtrl_jax._src.tasks.common import bootstrapped, draw
from kfrtrl_jax._src.tasks.conditioning import (
    noisy_patterning,
    trace_conditioning,
    trace_patterning,
)
from kfrtrl_jax._src.tasks.copy import copy
from kfrtrl_jax._src.tasks.copy_fixed import copy_fixed
from kfrtrl_jax._src.tasks.flip_flop import flip_flop
from kfrtrl_jax._src.tasks.mnist import mnist1d, read_mnist, sequential_mnist
from kfrtrl_jax._src.tasks.recall import memory_chain, t_maze
from kfrtrl_jax._src.tasks.registry import TASKS
from kfrtrl_jax._src.tasks.text import Corpus, penn_treebank, read_corpus, read_penn_treebank, text

__all__ = [
    "TASKS",
    "Batch",
    "Corpus",
    "Score",
    "Task",
    "adding",
    "anbn",
    "bootstrapped",
    "context_integration",
    "copy",
    "copy_fixed",
    "delayed_match",
    "download",
    "draw",
    "flip_flop",
    "henon",
    "lorenz",
    "mackey_glass",
    "memory_chain",
    "mnist1d",
    "noisy_patterning",
    "penn_treebank",
    "read_corpus",
    "read_mnist",
    "read_penn_treebank",
    "sequential_mnist",
    "t_maze",
    "text",
    "trace_conditioning",
    "trace_patterning",
]
