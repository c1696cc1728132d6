"""Sources of sequences, made on the device inside the scan."""

from collections.abc import Callable

from kfrtrl_jax.tasks.base import Batch, Task
from kfrtrl_jax.tasks.copy import copy
from kfrtrl_jax.tasks.text import Corpus, penn_treebank, read_corpus, read_penn_treebank, text

TASKS: dict[str, Callable[..., Task]] = {
    "copy": copy,
    "text": text,
    "penn_treebank": penn_treebank,
}

__all__ = [
    "TASKS",
    "Batch",
    "Corpus",
    "Task",
    "copy",
    "penn_treebank",
    "read_corpus",
    "read_penn_treebank",
    "text",
]
