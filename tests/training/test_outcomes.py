"""What the trials of a sweep have come to, in words and pictures."""

import json
from pathlib import Path

import pytest

from kfrtrl_jax.errors import WorkdirError
from kfrtrl_jax.training import outcomes, tables, trials

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def test_settings_that_read_alike_are_told_apart():
    rates = [{"optimizer.learning_rate": rate} for rate in (0.0010001, 0.0010002, 0.1)]
    assert outcomes.labels(rates) == [
        "optimizer.learning_rate=0.0010001",
        "optimizer.learning_rate=0.0010002",
        "learning_rate 0.1",
    ]
    # Two fields of the same name, a number and a text, and a setting that occurs twice.
    other = [{"optimizer.decay": 0.5}, {"estimator.decay": 0.5}, {"seed": 1}, {"seed": 1}]
    assert outcomes.labels(other) == [
        "optimizer.decay=0.5",
        "estimator.decay=0.5",
        "seed 1",
        "seed 1",
    ]
    # The order of the fields is no difference.
    pair = [{"decay": 1e-4, "rate": r} for r in (0.10001, 0.10002)]
    again = dict(reversed(pair[0].items()))
    one, another, same = outcomes.labels([*pair, again])
    assert one == same != another
    assert outcomes.labels([{"window": 8}, {"window": "8"}]) == ["window=8", "window='8'"]


def test_seeds_of_rates_that_read_alike_are_not_pooled():
    sweep = [
        {"optimizer.learning_rate": rate, "seed": seed}
        for rate in (0.0010001, 0.0010002)
        for seed in range(2)
    ]
    assert [*outcomes.by_setting(sweep).values()] == [[0, 1], [2, 3]]
    results = [{"score": score, "loss_unit": "bits"} for score in (1.0, 2.0, 5.0, 7.0)]
    (row, *_) = tables.pivot([{**own, "task": "copy"} for own in sweep], results, ["task"]).split(
        "\n"
    )[2:]
    assert row == "| copy: bits | 1.5 ± 0.7 | 6 ± 1 |"


def test_each_swept_number_has_a_picture_of_its_own(tmp_path):
    sweep = [
        {"optimizer.decay": one, "estimator.decay": other, "optimizer.learning_rate": rate}
        for one in (0.1, 0.5)
        for other in (0.2, 0.4)
        for rate in (0.01, 0.1)
    ]
    results = [{"running_loss": float(i), "loss_unit": "bits"} for i in range(len(sweep))]
    logs = [[{"step": step, "running_loss": 1.0} for step in (10, 20)] for _ in sweep]
    outcomes.report(sweep, results, logs, tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "sweep.png",
        "sweep_optimizer.decay.png",
        "sweep_estimator.decay.png",
        "sweep_learning_rate.png",
    }


def test_a_folder_of_no_sweep_has_no_finished_trials(tmp_path):
    with pytest.raises(WorkdirError, match=r"has no sweep.json: it is of no sweep, or of one that"):
        trials.finished(tmp_path, pytest.fail)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("tasks", ["task"]),
        ("immediate", ["task"]),
        ("layers", ["task", "cell"]),
        ("shrink", ["task"]),
    ],
)
def test_the_committed_tables_are_those_of_the_committed_results(name, rows):
    overrides, results = [], []
    for trial in json.loads((RESULTS / f"{name}.json").read_text())["trials"]:
        own = [*trial].index("step")
        overrides.append(dict([*trial.items()][:own]))
        results.append(dict([*trial.items()][own:]))
    assert tables.pivot(overrides, results, rows) == (RESULTS / f"{name}.md").read_text()


def test_the_page_of_tasks_has_the_scores_of_the_committed_table():
    page = (RESULTS.parents[1] / "docs" / "tasks.md").read_text().splitlines()
    scores, _ = (RESULTS / "tasks.md").read_text().split("\n\n")
    rows = [line.partition(" | ")[::2] for line in scores.splitlines()[2:]]
    assert len(rows) == 15
    start = next(i for i, line in enumerate(page) if line.startswith("| `adding(20)`"))
    for line, (label, cells) in zip(page[start:], rows, strict=False):
        assert line.endswith(f" | {cells}")
        task = label[2:].partition("(")[0]
        assert line.startswith(f"| `{task}")
