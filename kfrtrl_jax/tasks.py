"""Tasks: streams of sequences, generated on the device inside the scan."""

from kfrtrl_jax._src.base import Batch, Score, Task
from kfrtrl_jax._src.tasks import download
from kfrtrl_jax._src.tasks.common import bootstrapped, draw
from kfrtrl_jax._src.tasks.copy import copy
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
    "penn_treebank",
    "read_corpus",
    "read_penn_treebank",
    "text",
]
