"""What the page of results holds."""

import html.parser
import json
import sys

import numpy as np
import pytest

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies.reproduction import cosines, page, records, results, runs
from tests.reproduction import invented

FULL = "full scale: 1,000,000 steps of 3 seeds"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return results.read(invented.results(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="module")
def content(found):
    return page.content(found)


class Parsed(html.parser.HTMLParser):
    """The tags of a page, with their attributes, and the text in each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data


def method_of(content, name, task=0):
    (found,) = (m for m in content["tasks"][task]["methods"] if m["name"] == name)
    return found


def test_names_and_texts_do_not_leave_the_data(content):
    parsed = Parsed(page.html(content, 'library("</script>")'))
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("script") == 3
    assert "img" not in tags
    library, data, _ = parsed.scripts
    assert library.strip() == r'library("<\/script>")'
    assert json.loads(data) == content
    assert method_of(json.loads(data), invented.MALICIOUS)["command"]


def test_no_spelling_of_its_end_tag_ends_the_script_of_the_library(content):
    parsed = Parsed(page.html(content, "a('</SCRIPT>', '</Script >')"))
    assert parsed.scripts[0].strip() == r"a('<\/SCRIPT>', '<\/Script >')"
    assert len(parsed.scripts) == 3


def test_the_page_loads_nothing(content):
    parsed = Parsed(page.html(content, ""))
    addresses = [
        value
        for _, attributes in parsed.tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data")
    ]
    assert set(addresses) == {"data:,", "#leaderboard", "#curves", "#configs"}
    (policy,) = (a["content"] for _, a in parsed.tags if "http-equiv" in a)
    # The last two do not fall back on the first.
    assert {"default-src 'none'", "base-uri 'none'", "form-action 'none'"} <= set(
        policy.split("; ")
    )


def test_the_curves_are_those_of_the_records(content, found):
    record = found.records["copy"]
    for trial in record["trials"]:
        curves = method_of(content, trial["method"])["curves"]["sequence_length"]["seeds"]
        (own,) = (curve for curve in curves if curve["seed"] == trial["overrides"]["seed"])
        assert own["step"] == trial["curve"]["step"]
        assert own["value"] == trial["curve"]["sequence_length"]
        assert own["seconds"] == trial["curve"]["wall_time"]
        assert own["lanes"] == 16
    validation = method_of(content, "KF-RTRL", 1)["curves"]["valid_loss"]["seeds"][0]
    assert (validation["step"], validation["value"]) == ([20_000, 40_000], [2.6, 2.1])
    assert validation["seconds"] == [2.0, 4.0]


def test_scores_are_at_the_last_step_of_all_seeds_and_at_the_steps_of_the_tables(content):
    kf_rtrl, uoro, ok = (method_of(content, name) for name in ("KF-RTRL", "UORO", "16-OK"))
    last = kf_rtrl["scores"]["last"]["sequence_length"]
    assert last == {"mean": 11.0, "deviation": 1.0, "runs": 3, "step": 100_000}
    assert kf_rtrl["scores"]["30000"]["sequence_length"]["mean"] == 4.0
    assert kf_rtrl["ms_per_step"] == 3.0
    assert kf_rtrl["kib_per_lane"] == 2.0
    assert kf_rtrl["command"].endswith("--config.num_steps=100000 --workdir=runs/one")
    # The seed that did not diverge.
    last = uoro["scores"]["last"]["sequence_length"]
    assert last == {"mean": 10.0, "deviation": None, "runs": 1, "step": 100_000}
    assert uoro["status"] == f"diverged: 1 of 2 seeds after 20,000 steps; {FULL}"
    assert ok["scores"]["last"]["sequence_length"]["step"] == 30_000
    assert "60000" not in ok["scores"]
    assert ok["status"] == "running: 30,000 of 100,000 steps; full scale: 200,000 steps of 3 seeds"
    tested = method_of(content, "KF-RTRL", 1)["results"]
    assert tested["test_loss"] == {"mean": 2.0, "deviation": None, "runs": 1}


def test_each_task_of_a_study_has_its_own_scores(content):
    first, second = (task for task in content["tasks"] if task["study"].startswith("Dependencies"))
    assert (first["name"], second["name"]) == invented.CHAINS
    scores = [task["methods"][0]["scores"]["last"]["score"]["mean"] for task in (first, second)]
    assert scores == [0.5, 1.0]
    assert "task" not in [field for field, _ in first["configs"]["common"]]
    assert f"'--config.task={invented.CHAINS[1]}'" in second["methods"][0]["command"]


def test_of_several_learning_rates_the_best_is_shown(content):
    (task,) = (task for task in content["tasks"] if task["study"].startswith("What is worth"))
    (own,) = (method for method in task["methods"] if method["name"] == "KF-RTRL")
    assert own["scores"]["last"]["score"]["mean"] == pytest.approx(0.45)
    assert "--config.optimizer.learning_rate=0.001" in own["command"]
    assert [figure["words"] for figure in task["figures"]] == ["mean square"]


def test_public_logs_are_marked(content):
    public = [m for m in content["tasks"][0]["methods"] if m["public"]]
    assert [m["name"] for m in public] == [
        f"16-{name}, {runs.SOURCE}" for name in ("KTP, batch 256", "OK")
    ]
    assert {(m["status"], m["command"], m["colour"]) for m in public} == {("public log", "", None)}
    assert public[1]["scores"]["30000"]["sequence_length"]["mean"] == pytest.approx(9.4)


def test_a_method_has_one_colour_in_all_tasks_and_alone_in_each():
    studies = [["a", "b", "c"], ["d", "b"], ["e", "d", "a"]]
    colours = page._colours(studies)
    assert colours == {"a": 0, "b": 1, "c": 2, "d": 2, "e": 1}
    for names in studies:
        assert len({colours[name] for name in names}) == len(names)


def test_cosines_are_of_the_same_estimator_cell_and_k(content, found):
    (expected,) = (
        row["cosine"]
        for row in found.certificates
        if (row["cell"], row["estimator"]) == ("recurrent_highway", "uoro")
        and row["segment_length"] == 1
    )
    known = method_of(content, "UORO")["cosine"]
    along = "a small untrained recurrent_highway"
    assert known == {"value": expected, "along": along, "K": 1}
    # Truncation estimates nothing, whatever its window.
    assert method_of(content, "TBPTT(25)")["cosine"] is None


def test_the_cosine_along_a_trained_network_is_that_of_the_same_network(found):
    def cosine(study, **overrides):
        own = {"estimator": "kf_rtrl", "immediate": "estimated", **overrides}
        run = runs.Run("KF-RTRL", "copy", 0, "done", {}, "recurrent_highway", overrides=own)
        return cosines.of(run, cosines.of_study(found, study))

    assert cosine("copy") == {"value": 0.25, "along": "a network trained on this task", "K": 1}
    # The task alone is not enough.
    assert cosine("budget") is None
    assert cosine("copy", **{"cell.hidden_size": 32}) is None
    assert cosine("copy", cell="gru(hidden_size=64)") is None


def test_the_mean_curve_ends_where_the_first_seed_does():
    one = {"step": [10, 20, 30, 40], "seconds": [1, 2, 3, 4], "value": [1, 2, 3, 4], "lanes": 2}
    other = {"step": [20, 30], "seconds": [4, 8], "value": [4, 6], "lanes": 2}
    found = page.mean_curve([one, other])
    assert found["step"] == [20, 30]
    assert found["value"] == [3, 4.5]
    assert found["seconds"] == [3, 5.5]
    np.testing.assert_allclose(found["deviation"], np.array([2, 3]) / np.sqrt(2), rtol=1e-4)
    # Between its own steps a curve is interpolated.
    coarse = {**one, "step": [10, 40], "seconds": [], "value": [0, 6]}
    found = page.mean_curve([one, coarse])
    assert found["step"] == [10, 20, 30, 40]
    assert found["value"] == [0.5, 2, 3.5, 5]
    assert found["seconds"] == []
    assert page.mean_curve([one])["deviation"] == []


def test_configs_stand_side_by_side_by_their_differences(content):
    configs = content["tasks"][0]["configs"]
    assert configs["common"] == [["segment_length", "1"]]
    assert configs["fields"] == ["estimator", "window"]
    rows = {row["method"]: row["values"] for row in configs["rows"]}
    assert rows["KF-RTRL"] == ["kf_rtrl", None]
    assert rows["TBPTT(25)"] == ["truncated", "25"]
    made_with = content["tasks"][0]["made_with"]
    assert made_with == ["jax 1.2.3, float32", "commit abc on <b>processor</b>, cores used: 2"]


def test_a_method_that_diverged_with_all_its_seeds_has_no_score(tmp_path):
    lost = [invented.trial("UORO", seed, 20_000, "diverged") for seed in range(2)]
    records.write(tmp_path / "reproduction" / "copy.json", invented.record("copy", lost))
    own = method_of(page.content(results.read(tmp_path)), "UORO")
    assert "last" not in own["scores"]
    assert own["status"] == f"diverged: 2 of 2 seeds after 20,000 steps; {FULL}"


def test_without_records_there_is_a_page_that_says_so(tmp_path):
    assert page.content(results.read(tmp_path)) == {"tasks": []}


def test_without_plotly_the_extra_is_named(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ConfigError, match=r"pip install 'kfrtrl_jax\[report\]'"):
        page.render(found)
