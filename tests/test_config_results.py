"""The results that configs name are those that were recorded."""

import ast
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ROWS = json.loads((ROOT / "experiments" / "results" / "configs.json").read_text())


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
