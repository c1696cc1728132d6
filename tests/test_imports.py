"""Dependencies point one way."""

import ast
from pathlib import Path

import pytest

import kfrtrl_jax

PACKAGE = Path(kfrtrl_jax.__file__).parent
# The modules that each part of the package must not import.
FORBIDDEN = {
    "": {"kfrtrl_jax.studies"},
    "_src": {"kfrtrl_jax.studies", "kfrtrl_jax.training"},
    "_src/estimators": {
        "kfrtrl_jax._src.cells",
        "kfrtrl_jax._src.credit",
        "kfrtrl_jax._src.linearization",
        "kfrtrl_jax._src.optimizers",
        "kfrtrl_jax._src.tasks",
    },
    "_src/tasks": {"kfrtrl_jax._src.estimators", "kfrtrl_jax._src.linearization"},
    "training": {"kfrtrl_jax.studies"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("part", FORBIDDEN)
def test_no_part_imports_what_stands_above_it(part):
    files = [p for p in (PACKAGE / part).rglob("*.py") if "studies" not in p.parts]
    assert files
    for path in files:
        for module in imported(path):
            for forbidden in FORBIDDEN[part]:
                assert not f"{module}.".startswith(f"{forbidden}."), f"{path} imports {module}"
