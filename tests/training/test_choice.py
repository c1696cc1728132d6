from __future__ import annotations

import csv

import pytest

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import choice, comparison, finished, metrics, workdir
from kfrtrl_jax.training.choice import Measure


def results(*losses, **fields):
    return [{"running_loss": loss, **fields} for loss in losses]


def test_the_figure_that_counts():
    assert choice.measure_of(results(1.0)) == Measure("running_loss")
    assert choice.measure_of(results(1.0, score=0.5, score_name="accuracy")) == ("score", True)
    error = results(1.0, score=0.5, score_name="NMSE", higher_is_better=False)
    assert choice.measure_of(error) == ("score", False)
    held_out = results(1.0, best_valid_loss=2.0, test_loss=3.0, score_name="accuracy")
    assert choice.measure_of(held_out) == Measure("best_valid_loss")


def test_the_best_setting_and_what_noise_cannot_tell_from_it():
    settings = {"a": results(1.0, 1.2), "b": results(1.1, 1.3), "c": results(2.0, 2.2)}
    # Each mean has a standard error of 0.1, a difference one of 0.14.
    assert choice.choose(settings, Measure("running_loss")) == ("a", pytest.approx(1.1), 1, 3, 0, 0)
    found = choice.choose(settings, Measure("running_loss", higher_is_better=True))
    assert found == ("c", pytest.approx(2.1), 0, 3, 0, 0)
    assert choice.in_words(found, "loss") == (
        "best by loss: c (2.1); 0 of 2 others within one standard error of the difference"
    )


def test_one_seed_has_no_standard_error():
    found = choice.choose({"a": results(1.0), "b": results(2.0)}, Measure("running_loss"))
    assert (found.setting, found.close) == ("a", None)
    assert choice.in_words(found, "loss") == "best by loss: a (1); one seed has no standard error"


def test_a_setting_that_diverged_on_a_seed_is_not_the_best():
    lost = {"diverged_at": 10}
    settings = {"a": [*results(1.0), lost], "b": results(2.0, 2.1), "c": [lost, lost]}
    found = choice.choose(settings, Measure("running_loss"))
    assert found == ("b", pytest.approx(2.05), None, 1, 2, 0)
    assert choice.in_words(found, "loss").endswith("; 2 left out, as trials of theirs diverged")
    assert choice.choose({"a": settings["a"]}, Measure("running_loss")).setting == "a"
    assert choice.choose({"c": settings["c"]}, Measure("running_loss")) is None


def test_a_setting_without_the_figure_is_told_apart_from_one_that_diverged():
    evaluated = results(1.0, 1.2, best_valid_loss=2.0)
    settings = {"a": evaluated, "b": results(0.5, 0.6), "c": [evaluated[0], {"diverged_at": 10}]}
    found = choice.choose(settings, Measure("best_valid_loss"))
    assert (found.setting, found.compared, found.diverged, found.without) == ("a", 1, 1, 1)
    assert choice.in_words(found, "loss").endswith(
        "; 1 left out, as trials of theirs diverged"
        "; 1 left out, as trials of theirs have no such figure"
    )


def write_run(folder, seed):
    folder.mkdir(parents=True)
    workdir.write_document(folder / "config.json", {"seed": seed, "log_every": 10})
    workdir.write_document(folder / "summary.json", {"step": 20, "loss_unit": "bits"})
    log, _ = metrics.open_log(folder)
    for step in (10, 20):
        log.write({"step": step, "running_loss": 1.0 / step})


@pytest.fixture
def swept(tmp_path):
    """A sweep of two estimators and two seeds, of which the last trial is not finished."""
    trials = []
    for i, (name, seed) in enumerate([("uoro", 0), ("uoro", 1), ("rflo", 0), ("rflo", 1)]):
        result = {"step": 20} if i < 3 else None
        own = {"estimator": name, "seed": seed}
        trials.append({"trial": f"{i:03}", "overrides": own, "result": result})
        write_run(tmp_path / "sweep" / "trials" / f"{i:03}", seed)
    workdir.write_document(tmp_path / "sweep" / "sweep.json", {"trials": trials})
    return tmp_path / "sweep"


def test_a_sweep_is_read_by_its_settings(swept):
    warnings = []
    found = finished.read_settings(swept, warnings.append)
    assert {label: len(runs) for label, runs in found.items()} == {"uoro": 2, "rflo": 1}
    (warning,) = warnings
    assert warning.startswith("1 of 4 trials of ")
    assert [*finished.read_settings(swept / "trials" / "000", pytest.fail)] == [""]


def test_runs_and_sweeps_are_compared(swept, tmp_path):
    write_run(tmp_path / "run", 0)
    pairs = [f"s={swept}", f"alone={tmp_path / 'run'}"]
    out, fields = tmp_path / "rate_0.5", ["running_loss"]
    warnings = []
    comparison.compare(pairs, out, fields, "", warnings.append)
    assert len(warnings) == 1
    with open(tmp_path / "rate_0.5.csv") as file:
        names = [row["run"] for row in csv.DictReader(file)]
    expected = ["s: uoro, seed 0", "s: uoro, seed 1", "s: rflo", "alone"]
    assert names == [name for name in expected for _ in range(2)]
    with pytest.raises(ConfigError, match="--runs has 'alone, seed 0' twice"):
        comparison.compare([pairs[1], pairs[1]], out, fields, "", pytest.fail)
    with pytest.raises(
        ConfigError, match="--fields: no record has the number 'runing_loss'; did you "
    ):
        comparison.compare(pairs[1:], out, ["runing_loss"], "", pytest.fail)
    with pytest.raises(ConfigError, match="--fields is empty; one of running_loss"):
        comparison.compare(pairs[1:], out, [], "", pytest.fail)
    with pytest.raises(ConfigError, match="--runs takes NAME=WORKDIR pairs"):
        comparison.compare(["alone"], out, fields, "", pytest.fail)
