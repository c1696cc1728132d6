"""The tutorials run, at a small size, and come to what can be said at that size."""

import pathlib
import re
from typing import Any

import jax
import numpy as np
import pytest

from kfrtrl_jax._src.compositions import factories
from tests.helpers.nights import NIGHT

ROOT = pathlib.Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a tutorial by its name, in single precision and a folder of its own: its variables."""
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KFRTRL_TUTORIAL_SCALE", "smoke")
    monkeypatch.delenv("KFRTRL_DATA_DIR", raising=False)

    def run(name):
        path = ROOT / "docs" / "tutorials" / f"{name}.py"
        names: dict[str, Any] = {"__name__": "__main__"}
        with jax.enable_x64(False):
            exec(compile(path.read_text(), path, "exec"), names)
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        return names

    yield run
    pyplot.close("all")


def test_a_character_model_has_cosines_to_exact_gradients(run):
    curves = run("character_model")["curves"]
    np.testing.assert_allclose(curves["rtrl"][:, 1], 1, atol=1e-5)
    np.testing.assert_array_equal(curves["truncated"][:, 1], 0)
    assert 0.5 < curves["snap"][:, 1].mean() < 1
    for curve in curves.values():
        assert curve[-1, 0] < curve[0, 0]


def test_a_flax_cell_learns_and_writes(run, capsys):
    names = run("flax_cell")
    assert "D diagonal in 2 bands" in capsys.readouterr().out
    verdicts = {row.estimator: row.unbiased for row in names["certificate"].rows}
    assert verdicts == {"rtrl": True, "kf_rtrl": True, "uoro": True, "snap": None}
    assert names["parts"][-1] < 0.9 * names["parts"][0]
    assert len(names["tokens"]) == names["length"]


def test_a_new_estimator_is_biased_by_how_much_it_fades(run):
    try:
        names = run("new_estimator")
    finally:
        # The name that it registers belongs to this test alone.
        factories.REGISTERED["estimator"].pop("fading", None)
    none, exact, faded, whole = names["faded"].rows
    assert exact.relative_bias < 1e-12
    assert none.relative_bias > 0.1
    np.testing.assert_allclose(faded.relative_bias, none.relative_bias, rtol=1e-6)
    assert faded.relative_noise < 1e-12 < whole.relative_noise
    assert whole.bias_z < 4


def test_a_stream_is_predicted_better_than_by_its_mean(run):
    names = run("mackey_glass")
    for losses in names["errors"].values():
        assert np.mean(losses[-200:]) < 0.9 * np.var(names["series"])
    assert len(names["series"]) == names["readings"]


@pytest.mark.skipif(not NIGHT, reason="for time: `make docs` runs it too; KFRTRL_NIGHT=1")
def test_an_agent_learns_as_from_exact_gradients_where_a_window_holds_the_episode(run):
    pytest.importorskip("gymnax")
    learned = run("memory_chain")["learned"]
    for curve, parameters in learned.values():
        assert np.all(np.abs(curve) <= 1)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(parameters))
    # An episode of 3 steps fits into a window of 8, and not into one of 1.
    exact, wide, short = (parameters["cell"]["nu"] for _, parameters in learned.values())
    np.testing.assert_allclose(wide, exact, rtol=1e-3)
    assert np.max(np.abs(short - exact)) > 1e-3


def test_tutorials_are_notebooks_with_a_page():
    nav = (ROOT / "mkdocs.yml").read_text()
    index = (ROOT / "docs" / "tutorials" / "README.md").read_text()
    assert len(TUTORIALS) == 5
    for path in TUTORIALS:
        header, *cells = re.split(r"^# %%", path.read_text(), flags=re.MULTILINE)
        assert "format_name: percent" in header, path
        assert cells[0].startswith(" [markdown]\n# # "), path
        for cell in cells:
            kind, _, text = cell.partition("\n")
            assert kind in ("", " [markdown]"), (path, kind)
            prose = [line for line in text.splitlines() if not line.startswith("#") and line]
            assert bool(prose) == (kind == ""), (path, text)
        assert f"- tutorials/{path.stem}.md" in nav
        assert f"]({path.name})" in index


def test_links_of_tutorials_lead_somewhere():
    for path in [*TUTORIALS, ROOT / "docs" / "tutorials" / "README.md"]:
        for target in re.findall(r"\]\(([\w./:-]+)\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), (path, target)
