"""Tasks: streams of sequences, generated on the device inside the scan."""

from kfrtrl_jax._src.base import Batch, Task
from kfrtrl_jax._src.tasks import download
from kfrtrl_jax._src.tasks.copy import copy
from kfrtrl_jax._src.tasks.registry import TASKS
from kfrtrl_jax._src.tasks.text import Corpus, penn_treebank, read_corpus, read_penn_treebank, text

__all__ = [
    "TASKS",
    "Batch",
    "Corpus",
    "Task",
    "copy",
    "download",
    "penn_treebank",
    "read_corpus",
    "read_penn_treebank",
    "text",
]
