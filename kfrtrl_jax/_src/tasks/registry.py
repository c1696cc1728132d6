"""Tasks by their names in configs."""

from collections.abc import Callable

from kfrtrl_jax._src.base import Task
from kfrtrl_jax._src.control.problem import Control, control
from kfrtrl_jax._src.tasks.copy import copy
from kfrtrl_jax._src.tasks.text import penn_treebank, text

TASKS: dict[str, Callable[..., Task | Control]] = {
    "copy": copy,
    "text": text,
    "penn_treebank": penn_treebank,
    "control": control,
}
