"""Tasks: streams of sequences, generated on the device inside the scan."""

from kfrtrl_jax._src.base import Batch, Score, Task
from kfrtrl_jax._src.tasks import download
from kfrtrl_jax._src.tasks.chaos import henon, lorenz, mackey_glass
from kfrtrl_jax._src.tasks.common import bootstrapped, draw
from kfrtrl_jax._src.tasks.conditioning import (
    noisy_patterning,
    trace_conditioning,
    trace_patterning,
)
from kfrtrl_jax._src.tasks.copy import copy
from kfrtrl_jax._src.tasks.mnist import mnist1d, read_mnist, sequential_mnist
from kfrtrl_jax._src.tasks.registry import TASKS
from kfrtrl_jax._src.tasks.text import Corpus, penn_treebank, read_corpus, read_penn_treebank, text

__all__ = [
    "TASKS",
    "Batch",
    "Corpus",
    "Score",
    "Task",
    "bootstrapped",
    "copy",
    "download",
    "draw",
    "henon",
    "lorenz",
    "mackey_glass",
    "mnist1d",
    "noisy_patterning",
    "penn_treebank",
    "read_corpus",
    "read_mnist",
    "read_penn_treebank",
    "sequential_mnist",
    "text",
    "trace_conditioning",
    "trace_patterning",
]
