"""What the reference is made of."""

import importlib
import inspect
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted(
    path.stem
    for path in (ROOT / "kfrtrl_jax").glob("*.py")
    if not path.stem.startswith("_") and "__all__" in path.read_text()
)


@pytest.mark.parametrize("name", ["", *MODULES])
def test_every_public_name_is_documented(name):
    module = importlib.import_module(f"kfrtrl_jax.{name}".rstrip("."))
    assert not [
        public
        for public in module.__all__
        # Constants are documented where they are defined.
        if (callable(member := getattr(module, public)) or inspect.ismodule(member))
        and not (inspect.getdoc(member) or "").strip()
    ]


def test_every_public_module_has_a_page_of_reference():
    nav = (ROOT / "mkdocs.yml").read_text()
    made = (ROOT / "docs" / "site" / "hooks.py").read_text()
    assert not [name for name in MODULES if f"- reference/{name}.md" not in nav]
    assert not [name for name in MODULES if f'"{name}",' not in made]
