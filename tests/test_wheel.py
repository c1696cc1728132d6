"""The distribution as people get it: built, installed elsewhere, and used from another folder."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kfrtrl_jax
from kfrtrl_jax.programs import MODULES, PROGRAMS, console

ROOT = Path(__file__).parents[1]
SOURCES = ("kfrtrl_jax", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
# What the library needs; the last two are what Flax brings.
CORE = {
    *("jax", "jaxlib", "numpy", "optax", "flax", "chex", "jaxtyping", "absl-py", "ml_collections"),
    *("orbax-checkpoint", "rich"),
}
IMPORTS = """
import sys
for module in sys.argv[2:]:
    sys.modules[module] = None  # as if it were not installed
import kfrtrl_jax
assert "jax" not in sys.modules
from kfrtrl_jax import *
assert make_learner and cells.CELLS and kfrtrl_jax.__file__.startswith(sys.argv[1])
unused = {"flax", "orbax", "rich", "ml_collections", "equinox"} & set(sys.modules)
assert not unused, unused
from kfrtrl_jax.programs import data, generate, noise
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the distribution alone, and one to work in that is empty."""
    setuptools = importlib.metadata.version("setuptools")
    if int(setuptools.split(".")[0]) < 77:
        pytest.skip(f"building needs setuptools 77 or newer, not {setuptools}")
    source, target, empty = (tmp_path_factory.mktemp(name) for name in ("from", "to", "empty"))
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('wheel')"
    python(build, cwd=source)
    (wheel,) = (source / "wheel").glob("*.whl")
    pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([sys.executable, *pip, "--target", target, wheel], check=True)
    return target, empty


def python(program, *arguments, **options):
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, **options)


def kfrtrl(installed, *arguments, module=False):
    """What the command does in the empty folder, or `python -m kfrtrl_jax` in place of it."""
    target, empty = installed
    command = ["-m", "kfrtrl_jax"] if module else [target / "bin" / "kfrtrl"]
    settings = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.run(
        [sys.executable, *command, *arguments],
        cwd=empty,
        env={**os.environ, **settings, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_requires_the_core_alone_and_has_what_it_needs(installed):
    target, _ = installed
    (found,) = importlib.metadata.distributions(name="kfrtrl_jax", path=[str(target)])
    core = [text for text in found.requires if "extra ==" not in text]
    assert {re.match(r"[\w-]+", text)[0] for text in core} == CORE
    assert found.version == kfrtrl_jax.__version__
    assert f"\nversion: {found.version}\n" in (ROOT / "CITATION.cff").read_text()
    files = {str(file) for file in found.files}
    for pattern in ("**/*.py", "**/page.*", "py.typed"):
        for path in (ROOT / "kfrtrl_jax").glob(pattern):
            assert str(path.relative_to(ROOT)) in files or path.parent.name == "__pycache__"
    for path in (ROOT / "configs").glob("*.py"):
        assert f"kfrtrl_jax/configs/{path.name}" in files
    assert {name.partition("/")[0] for name in files} <= {
        *("kfrtrl_jax", f"kfrtrl_jax-{found.version}.dist-info", "bin", "..")
    }


def test_it_imports_what_it_uses_and_core_programs_need_no_extra(installed):
    target, empty = installed
    modules = [module for modules in MODULES.values() for module in modules]
    environment = {**os.environ, "PYTHONPATH": str(target)}
    python(IMPORTS, str(target), *modules, cwd=empty, env=environment)


def test_it_trains_by_the_name_of_a_config_in_any_folder(installed):
    arguments = "train --config=copy --workdir=here --config.cell=vanilla(hidden_size=4)"
    fields = "task.batch_size=2 estimator=truncated num_steps=200 checkpoint_every=200"
    overrides = [f"--config.{field}" for field in fields.split()]
    ended = kfrtrl(installed, *arguments.split(), *overrides, module=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    made = {path.name for path in (installed[1] / "here").iterdir()}
    assert {"metrics.jsonl", "summary.json", "final"} <= made


def test_the_command_tells_its_version_and_refuses_a_name_that_is_no_program(installed):
    assert kfrtrl(installed, "--version").stdout == f"kfrtrl_jax {kfrtrl_jax.__version__}\n"
    ended = kfrtrl(installed, "trian")
    assert ended.returncode == 2
    assert ended.stderr == "error: there is no program 'trian'; did you mean train?\n"


def test_every_program_is_listed_and_has_its_thin_one():
    modules = {path.stem for path in (ROOT / "kfrtrl_jax" / "programs").glob("*.py")}
    assert modules - {"__init__", "console", "start"} == set(PROGRAMS)
    thin = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert thin - {"__init__"} == set(PROGRAMS)
    for name in PROGRAMS:
        assert f'console.run("{name}")' in (ROOT / "experiments" / f"{name}.py").read_text()
        assert f"  {name} " in console.overview()


def test_a_missing_extra_is_named_before_anything_is_imported(monkeypatch, capsys):
    monkeypatch.setattr(console.start, "begin", lambda: None)
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(SystemExit) as ended:
        console.run("sweep")
    assert ended.value.code == 2
    expected = 'error: kfrtrl sweep needs psutil; install by: pip install "kfrtrl_jax[train]"\n'
    assert capsys.readouterr().err == expected
