"""Dependencies point one way."""

import ast
from pathlib import Path

import pytest

import kfrtrl_jax

PACKAGE = Path(kfrtrl_jax.__file__).parent
# The modules that each part of the package must not import.
FORBIDDEN = {
    "": {"kfrtrl_jax.studies", "kfrtrl_jax.programs"},
    "_src": {"kfrtrl_jax.studies", "kfrtrl_jax.training"},
    "_src/estimators": {
        "kfrtrl_jax._src.cells",
        "kfrtrl_jax._src.credit",
        "kfrtrl_jax._src.linearization",
        "kfrtrl_jax._src.optimizers",
        "kfrtrl_jax._src.tasks",
    },
    "_src/compositions": {"kfrtrl_jax._src.learning"},
    "_src/tasks": {"kfrtrl_jax._src.estimators", "kfrtrl_jax._src.linearization"},
    "studies": {"kfrtrl_jax.programs"},
    "training": {"kfrtrl_jax.studies"},
}
# What may import all of the package; `_public.py` opens doors to all parts, each imported when used.
TOP = {"programs", "studies", "__main__.py", "_public.py"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("part", FORBIDDEN)
def test_no_part_imports_what_stands_above_it(part):
    files = [
        path
        for path in (PACKAGE / part).rglob("*.py")
        if part or path.relative_to(PACKAGE).parts[0] not in TOP
    ]
    assert files
    for path in files:
        for module in imported(path):
            for forbidden in FORBIDDEN[part]:
                assert not f"{module}.".startswith(f"{forbidden}."), f"{path} imports {module}"
