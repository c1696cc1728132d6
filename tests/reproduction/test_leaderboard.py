"""The leaderboard of README.md."""

import pytest

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies.reproduction import leaderboard, results
from tests.reproduction import invented


def test_a_method_has_its_places_its_score_and_its_costs(tmp_path):
    lines = leaderboard.render(results.read(invented.results(tmp_path))).splitlines()
    # Of the study of budgets there are steps, but no times.
    assert lines[2:4] == [
        "| KF-RTRL |  | 1.0 | 11.0 ± 1.0 (3) | 2 | 2 |",
        "| TBPTT(1) |  | 2.0 |  |  |  |",
    ]
    assert "| UORO |  |  | 10.0 (1) | 2 | 2 |" in lines
    # 16-OK has not come to 100,000 steps.
    assert not any(line.startswith("| 16-OK |") for line in lines)


def test_methods_of_the_full_scale_have_the_places_if_there_are_any(tmp_path):
    folder = invented.results(tmp_path)
    found = results.read(folder)
    of_all = leaderboard.render(found).splitlines()[0]
    assert of_all.startswith(
        "|  | mean place on five tasks after the same time | after 20,000 steps |"
    )
    own = [
        run._replace(planned_steps=96_000, series={"score": {96_000: 0.5}})
        if run.method == "KF-RTRL"
        else run
        for run in found.own["budget"]
    ]
    lines = leaderboard.render(found._replace(own={**found.own, "budget": own})).splitlines()
    assert " | after 96,000 steps | " in lines[0]
    assert lines[2] == "| KF-RTRL |  | 1.0 | 11.0 ± 1.0 (3) | 2 | 2 |"
    assert not any(line.startswith("| TBPTT(1) |") for line in lines)


def test_it_goes_between_its_marks():
    page = "a\n<!-- leaderboard -->\nold\n<!-- end of the leaderboard -->\nb\n"
    new = leaderboard.insert(page, "| new |\n")
    assert new == page.replace("old", "| new |")
    assert leaderboard.insert(new, "| new |\n") == new
    with pytest.raises(ConfigError, match="a page with a leaderboard has one <!-- leaderboard -->"):
        leaderboard.insert("a\n", "| new |\n")


def test_that_of_the_readme_is_of_the_committed_records():
    readme = (invented.RESULTS.parents[1] / "README.md").read_text()
    assert leaderboard.insert(readme, leaderboard.render(results.read(invented.RESULTS))) == readme
