from __future__ import annotations

import pathlib

import pytest

import configs
from tests.faults import entry

ROOT = pathlib.Path(configs.__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def screen(*arguments):
    outcome = entry.start(arguments, lambda *_: pytest.fail("a run began"))
    assert (outcome.code, outcome.error) == (0, "")
    lines = outcome.out.splitlines()
    assert len(lines) <= 64
    assert all(len(line) <= 100 for line in lines)
    return outcome.out


def test_help_names_configs_and_factories():
    shown = screen("--help")
    assert "  copy_fixed            The copying problem: 3 symbols recalled after" in shown
    assert "  optimizer adam, adamw, sgd, rmsprop, lion, muon, and " in shown
    assert "--dry_run" in shown


@pytest.mark.parametrize("name", NAMES)
def test_help_for_a_config_is_one_screen(name):
    assert f"configs/{name}.py" in screen("--help", f"--config={name}")


def test_help_for_a_config_has_its_values_types_and_choices():
    shown = screen("--config=copy", "--config.estimator=average(ok(rank=2), copies=3)", "--help")
    rows = [line.split() for line in shown.splitlines()]
    assert ["estimator.estimator", "estimator", "ok(rank=2)", "required"] in rows
    assert ["estimator.copies", "integer", "3", "required"] in rows
    assert ["checkpoint_every", "integer", "5000", "default", "0"] in rows
    assert ["optimizer.name", "name", "adam"] in rows
    assert ["one", "of", "adam,"] in [row[:3] for row in rows]


def test_help_for_a_wrong_config_is_refused():
    assert entry.start(["--help", "--config=copi"]).code == 2
    assert entry.start(["--help", "--config=copy", "--config.seed=x"]).code == 2
