"""Results of sweeps as tables."""

import pytest

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import tables


def test_seeds_are_a_mean_and_what_diverged_is_told():
    overrides = [
        {"task": "copy", "estimator": "uoro", "seed": 0},
        {"task": "copy", "estimator": "uoro", "seed": 1},
        {"task": "copy", "estimator": "ok(rank=2)", "seed": 0},
        {"task": "adding", "estimator": "uoro", "seed": 0},
    ]
    results = [
        {"score": 1.0, "wall_time": 10.0, "loss_unit": "bits"},
        {"score": 3.0, "wall_time": 12.0, "loss_unit": "bits"},
        {"diverged_at": 40},
        {"score": 0.5, "wall_time": 1.0, "score_name": "accuracy", "loss_unit": "bits"},
    ]
    text = tables.pivot(overrides, results, ["task"])
    lines = text.splitlines()
    assert lines[0].endswith("| uoro | ok(rank=2) |")
    assert lines[2] == "| copy: bits | 2 ± 1 | - (1 diverged) |"
    assert lines[3] == "| adding: accuracy | 0.5 | - |"
    assert lines[7] == "| copy: bits | 12 | - |"


def test_a_trial_without_the_row_is_refused():
    with pytest.raises(ConfigError, match="without the override 'cell'"):
        tables.pivot([{"task": "copy"}], [{}], ["cell"])
    with pytest.raises(ConfigError, match="the rows need the path of an override"):
        tables.pivot([{"task": "copy"}], [{}], [])
