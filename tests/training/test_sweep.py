from __future__ import annotations

import json

import matplotlib.image
import numpy as np
import pytest

from kfrtrl_jax.errors import ConfigError, WorkdirError
from kfrtrl_jax.training import loop, memory, metrics, sweep
from tests.training.small import nested, small, text

BASE = nested({"num_steps": 40, "checkpoint_every": 0})
TRIALS = sweep.product(
    sweep.grid(**{"estimator.name": ["kf_rtrl", "truncated"]}),
    sweep.grid(**{"optimizer.learning_rate": [1e-2, 1e-3]}),
    sweep.seeds(2),
)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, sweep.run_sweep(BASE, TRIALS, folder)


def test_products_of_grids_and_seeds():
    assert len(TRIALS) == 8
    assert TRIALS[1] == {"estimator.name": "kf_rtrl", "optimizer.learning_rate": 1e-2, "seed": 1}
    assert sweep.grid(a=[1, 2], b=[3]) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]


def test_trials_that_differ_in_seed_and_floats_are_one_program():
    trials = [small({**changes, "num_steps": 40}) for changes in TRIALS]
    assert sweep._groups(trials) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_program_holds_no_more_trials_than_fit(monkeypatch):
    trials = [small({**changes, "num_steps": 40}) for changes in TRIALS]
    monkeypatch.setattr(memory, "available", lambda: 300)
    monkeypatch.setattr(memory, "needed", lambda built: (100, 50))
    assert sweep._groups(trials) == [[0, 1, 2], [3], [4, 5, 6], [7]]


def test_a_trial_is_the_single_run(swept, tmp_path):
    folder, results = swept
    trial = 3
    config = small({**TRIALS[trial], "num_steps": 40, "checkpoint_every": 0})
    loop.train(config, tmp_path)
    alone = metrics.read(tmp_path / "metrics.jsonl")
    together = metrics.read(folder / "trials" / f"{trial:03}" / "metrics.jsonl")
    for name in ("step", "loss", "running_loss", "gradient_norm", "sequence_length"):
        np.testing.assert_allclose(
            [r[name] for r in together], [r[name] for r in alone], rtol=1e-6, err_msg=name
        )
    assert results[trial] == {**together[-1], "loss_unit": "bits/char"}
    written = json.loads((folder / "trials" / f"{trial:03}" / "config.json").read_text())
    assert written == config.to_dict()


def test_results_and_pictures_are_written(swept):
    folder, results = swept
    assert len(results) == 8
    written = json.loads((folder / "sweep.json").read_text())
    assert written["overrides"] == TRIALS
    assert list(written["results"]) == [f"{i:03}" for i in range(8)]
    for name in ("sweep.png", "sweep_learning_rate.png"):
        assert matplotlib.image.imread(folder / name).ndim == 3


def test_a_finished_group_is_not_run_again(swept, monkeypatch):
    folder, results = swept
    path = folder / "sweep.json"
    written = json.loads(path.read_text())
    for name in ("004", "005", "006", "007"):
        del written["results"][name]
    path.write_text(json.dumps(written))
    ran = []
    monkeypatch.setattr(
        sweep,
        "_run_group",
        lambda group, *rest: ran.append(list(group)) or {f"{i:03}": results[i] for i in group},
    )
    assert sweep.run_sweep(BASE, TRIALS, folder) == results
    assert ran == [[4, 5, 6, 7]]


def test_another_sweep_is_refused(swept):
    folder, _ = swept
    with pytest.raises(WorkdirError, match=r"000\.seed \(0 there, 7 now\)"):
        sweep.run_sweep(BASE, [{**TRIALS[0], "seed": 7}, *TRIALS[1:]], folder)


def test_a_trial_that_diverges_leaves_the_others_alone(tmp_path):
    trials = sweep.grid(**{"optimizer.learning_rate": [1e-3, 1e308]})
    changes = {"num_steps": 20, "optimizer.name": "sgd", "estimator.name": "truncated"}
    base = nested({**changes, **text(tmp_path / "data")})
    good, bad = sweep.run_sweep(base, trials, tmp_path / "sweep")
    assert good["step"] == 20
    assert good["valid_loss"] > 0
    assert 1 <= bad["diverged_at"] <= 20


def test_a_bad_trial_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"trial 1 of the sweep: config\.estimator\.name: there"):
        sweep.run_sweep(BASE, [{}, {"estimator.name": "kfrtl"}], tmp_path)
    with pytest.raises(ConfigError, match=r"config\.foo is not a field of a config"):
        sweep.run_sweep(BASE, [{"foo.bar": 3}], tmp_path)
    with pytest.raises(ConfigError, match="the sweep has no trials"):
        sweep.run_sweep(BASE, [], tmp_path)
    with pytest.raises(ConfigError, match=r"get_sweep\(\) must return a list of dicts"):
        sweep.run_sweep(BASE, ["seed"], tmp_path)
    assert not list(tmp_path.iterdir())
