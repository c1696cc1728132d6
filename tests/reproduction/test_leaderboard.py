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
    (first, *_) = found.own["budget"]
    full = [
        first._replace(method=f"method {i}", planned_steps=384_000, series={"score": {96_000: i}})
        for i in range(5)
    ]
    some, few = (
        leaderboard.render(
            found._replace(own={**found.own, "budget": [*found.own["budget"], *own]})
        )
        for own in (full, full[:4])
    )
    assert " | after 96,000 steps | " in some.splitlines()[0]
    # The error of the first is the least, and no other method has a place.
    assert some.splitlines()[2] == "| method 0 |  | 1.0 |  |  |  |"
    assert "| KF-RTRL |  |  | 11.0 ± 1.0 (3) |" in some
    # Among four a place says little.
    assert few.splitlines()[0] == of_all


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
