"""Methods at their best learning rates, at the same time and at the same number of steps."""

from __future__ import annotations

from typing import Any

import pytest
from ml_collections import ConfigDict

from kfrtrl_jax.studies.reproduction import budget, times
from kfrtrl_jax.studies.reproduction.chapters import CHAPTERS
from kfrtrl_jax.studies.reproduction.runs import Run
from kfrtrl_jax.studies.reproduction.study import Extent, Study

SCORES = CHAPTERS["budget"].tasks
ADDING, COPY = "adding(batch_size=8, length=20)", "copy(batch_size=8)"


def run(
    method: str,
    errors: dict[int, float],
    rate: float = 1e-3,
    seed: int = 0,
    status: str = "done",
    task: str = ADDING,
    **fields: Any,
) -> Run:
    field = SCORES[budget.base(task)].field
    series = {field: errors, "running_loss": dict.fromkeys(errors, 1.0), **fields}
    overrides = {budget.RATE: rate, "seed": seed}
    return Run(method, task, seed, status, series, planned_steps=1600, overrides=overrides)


def cheap_and_dear() -> list[Run]:
    """A cheap method that is worse at each step, and a dear one, of half as many steps."""
    return [
        *(run("cheap", {400: 0.9, 800: 0.5, 1600: 0.1}, seed=seed) for seed in range(3)),
        *(run("dear", {400: 0.4, 800: 0.3}, seed=seed) for seed in range(3)),
    ]


def by_method(readings: Any) -> dict[str, budget.Reading]:
    return {reading.method: reading for reading in readings}


def test_at_the_same_number_of_steps_the_shortest_runs_decide() -> None:
    comparison = budget.same_steps(cheap_and_dear(), SCORES)
    found = by_method(comparison.readings[ADDING])
    assert comparison.limits == {ADDING: "800 steps"}
    assert (found["cheap"].mean, found["dear"].mean) == (0.5, 0.3)


def test_at_the_same_time_a_cheap_method_is_read_later() -> None:
    # 800 steps of 4 ms take as long as 1,600 steps of 2 ms.
    comparison = budget.same_time(cheap_and_dear(), SCORES, {"cheap": 2.0, "dear": 4.0})
    found = by_method(comparison.readings[ADDING])
    assert comparison.limits == {ADDING: "3.2 s"}
    assert (found["cheap"].step, found["dear"].step) == (1600, 800)
    assert budget.ranks(comparison, SCORES) == {"cheap": 1.0, "dear": 2.0}


def test_a_method_read_on_some_tasks_moves_no_other_from_its_place() -> None:
    runs = [
        *(run(name, {400: error}) for name, error in (("best", 0.1), ("last", 0.4))),
        *(run(name, {400: value}, task=COPY) for name, value in (("best", 3), ("last", 3))),
        run("begun", {400: 0.2}),
    ]
    places = budget.ranks(budget.same_steps(runs, SCORES), SCORES)
    assert places == {"best": 1.25, "last": 1.75}


def test_a_step_between_two_records_is_read_at_the_earlier() -> None:
    comparison = budget.same_time(cheap_and_dear(), SCORES, {"cheap": 3.0, "dear": 4.0})
    assert by_method(comparison.readings[ADDING])["cheap"].step == 800


def three_rates(failed: int, until: dict[int, float]) -> list[Run]:
    """Two seeds at each of three rates, of which the one with the least error diverges for a seed."""
    return [
        run("KF-RTRL", {400: 0.6, 800: 0.5}, 1e-3, 0),
        run("KF-RTRL", {400: 0.4, 800: 0.3}, 1e-3, 1),
        run("KF-RTRL", {400: 0.1, 800: 0.1}, 1e-2, 1 - failed),
        run("KF-RTRL", until, 1e-2, failed, "diverged"),
        run("KF-RTRL", {400: 0.5, 800: 0.2}, 1e-4, 0),
        run("KF-RTRL", {400: 0.9, 800: 0.9}, 1e-4, 1),
    ]


@pytest.mark.parametrize("failed", [0, 1])
@pytest.mark.parametrize("until", [{}, {400: 0.1}])
def test_the_rate_is_the_best_by_the_mean_over_seeds_and_one_with_a_failure_is_left_out(
    failed: int, until: dict[int, float]
) -> None:
    runs = three_rates(failed, until)
    (reading,) = budget.same_steps(runs, SCORES).readings[ADDING]
    assert (reading.rate, reading.mean) == (1e-3, 0.4)
    assert {r.overrides[budget.RATE] for r in budget.at_best_rates(runs, SCORES)} == {1e-3}


@pytest.mark.parametrize("failed", [0, 1])
def test_a_rate_at_which_a_seed_diverges_after_the_budget_is_read_within_it(failed: int) -> None:
    runs = [*three_rates(failed, {400: 0.2}), run("dear", {400: 0.4})]
    comparison = budget.same_steps(runs, SCORES)
    assert comparison.limits == {ADDING: "400 steps"}
    reading = by_method(comparison.readings[ADDING])["KF-RTRL"]
    assert (reading.step, reading.rate, reading.mean) == (400, 1e-2, pytest.approx(0.15))
    twice = budget.same_time(runs, SCORES, {"KF-RTRL": 1.0, "dear": 2.0})
    assert by_method(twice.readings[ADDING])["KF-RTRL"].rate == 1e-3
    assert not comparison.diverged[ADDING]


def test_a_method_that_diverged_at_every_rate_is_told_and_makes_no_budget_small() -> None:
    lost = [run("lost", {400: 0.1}, rate, 0, "diverged") for rate in (1e-3, 1e-2)]
    comparison = budget.same_time(
        [*cheap_and_dear(), *lost], SCORES, {"cheap": 2.0, "dear": 4.0, "lost": 1.0}
    )
    assert comparison.limits == {ADDING: "3.2 s"}
    assert comparison.diverged == {ADDING: ["lost"]}
    lines = budget.table(comparison, SCORES, {}).splitlines()
    assert "| lost |  |  | 1,600 | diverged at every rate |" in lines
    assert "lost" not in budget.ranks(comparison, SCORES)
    alone = budget.same_steps(lost, SCORES)
    assert (alone.limits, alone.readings) == ({ADDING: "0 steps"}, {ADDING: []})


def test_methods_of_the_full_scale_are_compared_by_themselves() -> None:
    full = Extent(1600, 3)
    runs = [run._replace(full=full) for run in cheap_and_dear()]
    short = [run("short", {400: 0.1}, seed=seed)._replace(full=full) for seed in range(2)]
    short[1] = short[1]._replace(planned_steps=400)
    whole = budget.at_full_scale([*runs, *short, run("unknown", {400: 0.1})])
    assert whole == runs
    assert budget.same_steps(whole, SCORES).limits == {ADDING: "800 steps"}


def test_equal_scores_are_decided_by_the_running_loss() -> None:
    runs = [
        run("KF-RTRL", {400: 3}, rate, task=COPY, running_loss={400: loss})
        for rate, loss in ((1e-4, 0.3), (1e-3, 0.2), (1e-2, 0.4))
    ]
    (reading,) = budget.same_steps(runs, SCORES).readings[COPY]
    assert reading.rate == 1e-3


def test_runs_that_have_not_ended_do_not_count() -> None:
    begun = run("16-OK", {400: 0.9}, status="running")
    comparison = budget.same_steps([*cheap_and_dear(), begun], SCORES)
    assert comparison.limits == {ADDING: "800 steps"}
    assert "16-OK" not in by_method(comparison.readings[ADDING])


def test_what_is_within_noise_of_the_best_is_bold_too() -> None:
    runs = [
        *(run("best", {400: error}, seed=seed) for seed, error in enumerate((0.1, 0.2, 0.3))),
        *(run("near", {400: error}, seed=seed) for seed, error in enumerate((0.3, 0.1, 0.4))),
        *(run("far", {400: error}, seed=seed) for seed, error in enumerate((0.6, 0.7, 0.8))),
    ]
    table = budget.table(budget.same_steps(runs, SCORES), SCORES, {"best": 1.5})
    lines = table.splitlines()
    assert "| best | 1.5 | 1.0 | 1,600 | **0.2 ± 0.1 (3) at 10^-3** |" in lines
    assert "| near |  | 2.0 | 1,600 | **0.267 ± 0.15 (3) at 10^-3** |" in lines
    assert "| far |  | 3.0 | 1,600 | 0.7 ± 0.1 (3) at 10^-3 |" in lines


def test_one_seed_tells_no_two_methods_apart() -> None:
    runs = [run("best", {400: 0.1}), run("near", {400: 0.2})]
    lines = budget.table(budget.same_steps(runs, SCORES), SCORES, {}).splitlines()
    assert "| best |  | 1.0 | 1,600 | **0.1 (1) at 10^-3** |" in lines
    assert "| near |  | 2.0 | 1,600 | **0.2 (1) at 10^-3** |" in lines


def test_a_method_is_timed_at_each_of_its_steps() -> None:
    config = ConfigDict(
        {
            "segment_length": 1,
            "cell": {"name": "lru", "hidden_size": 2},
            "estimator": {"name": "truncated"},
            "task": {"name": "adding", "batch_size": 1},
            "optimizer": {"name": "sgd", "learning_rate": 1e-3},
        }
    )
    methods = {"TBPTT(1)": {"estimator": "truncated"}}
    study = Study("budget", "", config, methods, [{**methods["TBPTT(1)"], "num_steps": 7}])
    measured = times.measure(study, {}, rounds=1)
    assert list(measured) == ["TBPTT(1)"]
    assert 0 < measured["TBPTT(1)"] < 1000


@pytest.mark.parametrize("scale", ["smoke", "cpu", "full"])
def test_every_trial_of_the_study_is_of_the_method_that_it_was_made_from(scale: str) -> None:
    from configs import reproduce_budget as made

    study = Study("budget", "", None, made.get_methods(), made.get_sweep(scale))
    named = {study.method_of(trial) for trial in study.trials}
    assert named == set(made.steps_at(scale))
