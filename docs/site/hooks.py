"""What the site of docs/ has beside the pages of that folder.

README.md is its first page, RESULTS.md and the files of experiments/results come along, and there is a
page of reference for each public module and each estimator. Each tutorial is run, and becomes a page
with what it printed and drew. Formulas become MathML, which browsers show without a script.
"""

from __future__ import annotations

import ast
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import jupytext
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "kfrtrl_jax"
MODULES = (
    "cells",
    "control",
    "credit",
    "estimators",
    "learning",
    "linearization",
    "losses",
    "optimizers",
    "readouts",
    "register",
    "tasks",
    "trajectories",
    "base",
    "errors",
)
_SHOWN = ("*.png", "*.md", "*.json", "*.csv")
# Minutes of computing for each tutorial at full size, against seconds: `make docs TUTORIALS=full`.
_SCALE = os.environ.get("KFRTRL_TUTORIAL_SCALE", "smoke")
_SMOKE = """
!!! warning
    The tutorials were run at the size of tests here, at which their figures and pictures show nothing.
    `make docs TUTORIALS=full` makes the site with the real ones.
"""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made, and the figures that pages link to."""

    def add(name: str, text: str | bytes) -> None:
        files.append(File.generated(config, name, content=text))

    add("index.md", (ROOT / "README.md").read_text())
    add("RESULTS.md", (ROOT / "RESULTS.md").read_text())
    results = ROOT / "experiments" / "results"
    for pattern in _SHOWN:
        for path in results.rglob(pattern):
            # Pages of tables are files to look at here, not pages of the site.
            name = path.relative_to(ROOT).as_posix().replace(".md", ".txt")
            add(name, path.read_bytes())
    add("LICENSE.txt", (ROOT / "LICENSE").read_text())
    for name in ("WORKSPACE.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        add(name, (ROOT / name).read_text())
    for path in sorted((ROOT / "docs" / "tutorials").glob("*.py")):
        page, pictures = _tutorial(path)
        add(f"tutorials/{path.stem}.md", page)
        for name, picture in pictures.items():
            add(f"tutorials/{name}", picture)
    add("reference/index.md", _reference())
    for module in MODULES:
        add(f"reference/{module}.md", f"# {PACKAGE}.{module}\n\n{_directives(module)}")
    for name in public("estimators"):
        if name.islower():
            add(f"reference/estimators/{name}.md", _estimator(name))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links to what lies beside docs/ into those of the site, and formulas into MathML."""
    source = page.file.src_uri
    if source in ("index.md", "WORKSPACE.md", "CONTRIBUTING.md", "RESULTS.md"):
        markdown = markdown.replace("](docs/", "](").replace("](LICENSE)", "](LICENSE.txt)")
        markdown = markdown.replace("](README.md", "](index.md")
    elif not source.startswith("tutorials/"):
        markdown = markdown.replace("](../README.md", "](index.md")
        markdown = re.sub(r"\]\(\.\./([\w/.]+)", r"](\1", markdown)
    markdown = re.sub(r"(\]\(experiments/[\w/.-]+)\.md\)", r"\1.txt)", markdown)
    # A folder has no page.
    markdown = re.sub(r"\[([^\]]+)\]\(experiments/results(?:/\w+)?\)", r"\1", markdown)
    markdown = re.sub(r"(\]\((?:tutorials/)?\w+)\.py\)", r"\1.md)", markdown)
    if source.startswith("reference/"):
        return markdown
    markdown = re.sub(r"```math\n(.*?)```", lambda m: _formula(m[1], "block"), markdown, flags=re.S)
    return re.sub(r"\$`([^`]+)`\$", lambda m: _formula(m[1], "inline"), markdown)


def _tutorial(path: Path) -> tuple[str, dict[str, bytes]]:
    """The page of a tutorial as it was run in a folder of its own, and its pictures by name."""
    notebook = jupytext.read(path)
    environment = os.environ | {"KFRTRL_TUTORIAL_SCALE": _SCALE, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        # By default all passes through TCP ports, of which the kernel warns.
        sockets = {"transport": "ipc", "ip": f"{folder}/kernel"}
        client = NotebookClient(
            notebook,
            timeout=None,
            resources={"metadata": {"path": folder}},
            config=Config({"KernelManager": sockets}),
        )
        client.execute(env=environment)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    page, made = MarkdownExporter().from_notebook_node(notebook, {"unique_key": path.stem})
    heading, _, text = page.lstrip().partition("\n")
    script = f'[{path.name}]({path.name}){{ download="{path.name}" }}'
    about = f"{script} is a script, and a notebook for Jupyter and VS Code by jupytext."
    warning = _SMOKE if _SCALE == "smoke" else ""
    return f"{heading}\n\n{about}\n{warning}\n{text}", made["outputs"]


def _formula(text: str, display: str) -> str:
    formula = convert(text.strip(), display=display)
    # Markdown takes a line that begins with <math> for a block of HTML.
    return f"<span>{formula}</span>" if display == "inline" else formula


def public(module: str) -> list[str]:
    """The names in `__all__` of a public module, "" for the package."""
    path = ROOT / PACKAGE / f"{module or '_public'}.py"
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def _estimator(name: str) -> str:
    """Its docstring, below the first lines of its module, which name the source."""
    for node in ast.parse((ROOT / PACKAGE / "estimators.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            path = ROOT / f"{str(node.module).replace('.', '/')}.py"
            about = ast.get_docstring(ast.parse(path.read_text())) or ""
            return (
                f"::: {PACKAGE}.estimators.{name}\n    options: {{heading_level: 1}}\n\n{about}\n"
            )
    raise ValueError(f"{name} is imported from nowhere")


def _reference() -> str:
    links = "\n".join(f"- [`{PACKAGE}.{module}`]({module}.md)" for module in MODULES)
    names = [name for name in public("") if not (ROOT / PACKAGE / f"{name}.py").exists()]
    directives = "\n\n".join(f"::: {PACKAGE}.{name}" for name in names)
    return f"# Reference\n\n{links}\n\n{directives}\n"


def _directives(module: str) -> str:
    names = public(module)
    if module == "estimators":
        pages = [name for name in names if name.islower()]
        return "\n".join(f"- [`{name}`](estimators/{name}.md)" for name in pages)
    return "\n\n".join(f"::: {PACKAGE}.{module}.{name}" for name in names)
