"""The results that configs name are those that were recorded."""

import ast
import json
import pathlib

import pytest

from configs import ptb
from kfrtrl_jax.studies.reproduction import results, times
from tests.reproduction import invented

ROOT = pathlib.Path(__file__).parents[1]
ROWS = json.loads((ROOT / "experiments" / "results" / "configs.json").read_text())
# Training runs without a row: the Penn Treebank's is one of a study, and MNIST is not at hand.
WITHOUT = {"ptb", "sequential_mnist"}
NO_RUNS = {"fidelity", "noise", "theory"}


def test_every_config_of_a_training_run_was_run_to_its_end():
    paths = (ROOT / "configs").glob("[!_]*.py")
    runs = {path.stem for path in paths if "def get_sweep" not in path.read_text()} - NO_RUNS
    assert {row["config"] for row in ROWS} | WITHOUT == runs


def test_every_config_opens_with_its_command():
    for path in (ROOT / "configs").glob("[!_]*.py"):
        first = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
        name = path.stem
        own = f"--study={name.removeprefix('reproduce_')} --workdir=", f"--config=configs/{name}.py"
        assert first.startswith("kfrtrl ")
        assert any(option in first for option in own)
        assert "--workdir=" in first


def test_what_the_penn_treebank_config_reaches_is_that_of_the_study():
    record = results.read(invented.RESULTS).records["ptb"]
    (trial,) = (t for t in record["trials"] if t["method"] == "SnAp-1, blocks of 8")
    text = " ".join(ast.get_docstring(ast.parse((ROOT / "configs" / "ptb.py").read_text())).split())
    time = times.of(record)["SnAp-1, blocks of 8"]
    assert f"A test loss of {trial['test_loss']:.3f} bits per character after " in text
    assert f"after {trial['steps']:,} steps, {time:.1f} ms a step of one core" in text
    assert ptb.get_config().num_steps == trial["steps"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["config"])
def test_a_config_names_what_it_reaches_and_how_long_it_takes(row):
    module = ast.parse((ROOT / "configs" / f"{row['config']}.py").read_text())
    figure = row["figure"][0].upper() + row["figure"][1:]
    sentence = f"{figure} after {row['steps']:,} steps, {row['seconds']} s of one core."
    assert row["cores"] == 1
    assert sentence in ast.get_docstring(module).splitlines()
    (steps,) = (
        node.value.value
        for node in ast.walk(module)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "config.num_steps"
    )
    assert steps == row["steps"]
