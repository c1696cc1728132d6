"""Figures over seeds, and RESULTS.md."""

import math

import numpy as np
import pytest
import scipy.stats

from kfrtrl_jax.studies.reproduction import report, results, runs, tables
from kfrtrl_jax.studies.reproduction.runs import Run
from tests.reproduction import invented


def of_values(method, values, field="T"):
    """Runs with one figure each, seeds 0, 1, ..."""
    return [
        Run(method, "copy", seed, "done", {field: {10: value}})
        for seed, value in enumerate(values)
        if value is not None
    ]


def test_a_spread_is_the_mean_and_the_deviation_of_a_single_run():
    found = tables.spread([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert found.deviation == pytest.approx(math.sqrt(7.0))
    assert found.text(2) == "3.00 ± 2.65 (3)"
    assert tables.spread([4.0]).text(1) == "4.0 (1)"
    assert tables.spread([]).text(1) == ""


def test_paired_differences_have_the_interval_of_students_t():
    one, other = [3.0, 4.5, 7.0, 5.0], [2.0, 4.0, 5.5, None]
    all_runs = [*of_values("a", one), *of_values("b", other)]
    found = tables.paired(all_runs, "a", "b", "T", 10)
    expected = scipy.stats.ttest_rel(one[:3], other[:3]).confidence_interval(0.95)
    np.testing.assert_allclose(found.mean - found.margin, expected.low)
    np.testing.assert_allclose(found.mean + found.margin, expected.high)
    assert found.seeds == 3
    # 4.303 is the quantile in tables for two degrees of freedom, the differences are 1, 0.5, 1.5.
    np.testing.assert_allclose(found.margin, 4.303 * 0.5 / math.sqrt(3), rtol=1e-3)
    assert not found.beyond_noise
    assert found.text(2) == "+1.00 ± 1.24 (3, within noise)"


def test_a_single_pair_has_no_interval_and_none_has_no_difference():
    all_runs = [*of_values("a", [1.0]), *of_values("b", [3.0]), *of_values("c", [None, 1.0])]
    assert tables.paired(all_runs, "a", "b", "T", 10).text(1) == "-2.0 (1, no interval)"
    assert tables.paired(all_runs, "a", "c", "T", 10).text(1) == ""
    assert tables.paired(all_runs, "a", "b", "T", 20).seeds == 0


def test_the_last_common_step_is_of_the_seeds_that_did_not_diverge():
    def run(seed, last, status="done"):
        return Run("a", "copy", seed, status, {"T": dict.fromkeys(range(10, last + 1, 10), 1.0)})

    assert tables.last_common_step([run(0, 50), run(1, 30, "running")], "T") == 30
    assert tables.last_common_step([run(0, 50), run(1, 20, "diverged")], "T") == 50
    assert tables.last_common_step([run(0, 40, "diverged"), run(1, 20, "diverged")], "T") == 0
    assert tables.last_common_step([run(0, 50)], "other") == 0


def test_the_report_tells_seeds_unfinished_runs_and_diverged_ones(tmp_path):
    lines = report.render(results.read(invented.results(tmp_path))).splitlines()
    start = lines.index("T\\*:")
    table = {line.split(" | ")[0][2:]: line for line in lines[start + 2 : start + 11]}
    # T* at 10,000, 30,000, 60,000 and 100,000 steps, and of the public logs afterwards.
    assert "| 2.0 ± 1.0 (3) | 4.0 ± 1.0 (3) | 7.0 ± 1.0 (3) | 11.0 ± 1.0 (3) |" in table["KF-RTRL"]
    assert "| 1.5 ± 0.7 (2) | 3.0 (1), 1 diverged | 6.0 (1), 1 diverged |" in table["UORO"]
    assert "| 1.0 (1) | 3.0 (1) |  |  |" in table["16-OK"]
    assert "16-OK, logs of Benzing et al. (2019)" in table
    # Seeds 1 and 2 are in both; the difference is none.
    assert "| KF-RTRL | +0.0 ± 0.0 (2, within noise) |" in lines
    assert "T\\* after 100,000 steps, paired over seeds:" in lines
    costs = {line.split(" | ")[0][2:]: line for line in lines if "kfrtrl train" in line}
    full = "full scale: 200,000 steps of 3 seeds"
    assert f"| 1 | 30,000 | running: 30,000 of 100,000 steps; {full} | 2 | 2 |" in costs["16-OK"]
    assert "diverged: 1 of 2 seeds after 20,000 steps" in costs["UORO"]
    assert "num_steps=100000" in costs["16-OK"]
    assert any(line.startswith("| KF-RTRL | 2.100 (1) | 2.000 (1) |") for line in lines)


def test_the_report_has_budgets_and_the_noise_along_trained_networks(tmp_path):
    lines = report.render(results.read(invented.results(tmp_path))).splitlines()
    assert "| KF-RTRL |  | 1.0 | 20,000 of 96,000 | **0.45 ± 0.071 (2) at 10^-3** |" in lines
    assert "| TBPTT(1) |  | 2.0 | 20,000 of 384,000 | 0.75 ± 0.071 (2) at 10^-2 |" in lines
    assert "All methods, at the same number of time steps:" in lines
    assert not any("at the same wall time:" in line for line in lines)
    start = lines.index("| noise | K = 8 | papers' form |")
    assert lines[start + 2] == "| KF-RTRL | 4 ± 0.5 | 4 ± 0.5 |"
    command = (
        "`kfrtrl noise --config.trained=runs/one --config.num_steps=8 "
        "--config.draws=3 '--config.estimators=[\"kf_rtrl\"]' '--config.segment_lengths=[8]' "
        "--config.estimated=True --workdir=runs/noise`"
    )
    assert command in lines


def test_a_run_that_diverged_before_its_first_line_is_told():
    lost = invented.trial("UORO", 0, 0, "diverged", ms_per_step=0.0)
    found = runs.of_record(invented.record("copy", [lost]))
    full = "full scale: 1,000,000 steps of 3 seeds"
    assert runs.status_of(found) == f"diverged: 0 steps; {full}"
    assert f"| UORO | 1 | 0 | diverged: 0 steps; {full} |  | 2 |" in tables.costs(found)


def test_a_run_that_is_done_below_the_full_scale_says_so():
    planned = {"planned_steps": 1_000_000, "ms_per_step": 0.0}
    trials = [invented.trial("UORO", seed, 1_000_000, **planned) for seed in range(3)]
    status = runs.status_of(runs.of_record(invented.record("copy", trials)))
    assert status == "done"
    few = runs.of_record(invented.record("copy", trials[:2]))
    assert runs.status_of(few) == "done; full scale: 1,000,000 steps of 3 seeds"
    short = runs.of_record(invented.record("copy", [invented.trial("UORO", s) for s in range(3)]))
    assert runs.status_of(short) == "done; full scale: 1,000,000 steps of 3 seeds"
    assert tables.steps_of(short) == "100,000 of 1,000,000"
    # A method that the study no longer has.
    other = runs.of_record(invented.record("copy", [invented.trial("old", 0)]))
    assert (runs.status_of(other), tables.steps_of(other)) == ("done", "100,000")


def test_runs_that_diverged_at_several_steps_say_between_which():
    lost = [invented.trial("UORO", seed, 10_000 * (3 - seed), "diverged") for seed in range(3)]
    found = runs.of_record(invented.record("copy", lost))
    assert runs.status_of(found) == (
        "diverged: 3 of 3 seeds after 10,000 to 30,000 steps; full scale: 1,000,000 steps of 3 seeds"
    )


def test_a_table_by_task_marks_what_is_beyond_noise_and_tells_what_diverged():
    def run(method, seed, score, status="done"):
        series = {} if score is None else {"score": {10: score}}
        return Run(method, "chain", seed, status, series, ms_per_step=len(method))

    base = [run("base", seed, 0.5 + 0.01 * seed) for seed in range(3)]
    better = [run("better", seed, 0.9 + 0.01 * seed) for seed in range(3)]
    # The first has no figure at all.
    lost = [run("lost", 0, None, "diverged"), run("lost", 1, 0.5), run("lost", 2, 0.6)]
    lines = tables.by_task([*base, *better, *lost], "score", 2, "base").splitlines()
    assert lines[0] == "|  | chain | steps run, of the full scale's | ms a step |"
    assert lines[2] == "| base | 0.51 ± 0.01 (3) | 0 | 4 |"
    assert lines[3] == "| better | 0.91 ± 0.01 (3) ↑ | 0 | 6 |"
    assert lines[4] == "| lost | 0.55 ± 0.07 (2) 1 diverged | 0 | 4 |"


def test_the_committed_results_are_those_of_the_committed_records():
    root = invented.RESULTS.parents[1]
    assert (root / "RESULTS.md").read_text() == report.render(results.read(invented.RESULTS))
