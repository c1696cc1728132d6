from __future__ import annotations

import csv
import shutil

import jax
import matplotlib.image
import numpy as np
import pytest
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

import kfrtrl_jax as kf
from kfrtrl_jax.errors import ConfigError, WorkdirError
from kfrtrl_jax.training import (
    engines,
    loop,
    memory,
    metrics,
    overrides,
    progress,
    sweep,
    train,
    trials,
    workdir,
)
from kfrtrl_jax.training.engines import jobs
from kfrtrl_jax.training.group import make_group
from kfrtrl_jax.training.program import build
from tests.training.small import (
    compiled_once,
    nested,
    records,
    small,
    text,
    timeless,
    unsaved_pictures,
)
from tests.training.test_metrics import plugin_of, read_events

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


def of_trials(folder):
    return workdir.read_document(folder / "sweep.json")["trials"]


def planned(folder, changes, results, most=100):
    """The last digits of the names of the trials in every group of a plan."""
    configs = [small({**own, "num_steps": 40}) for own in changes]
    names, _ = trials.claim(folder, configs)
    named = dict(zip(names, configs))
    works = trials.plan(folder, named, results, lambda _, waiting: min(most, waiting), pytest.fail)
    return ["".join(name[-1] for name in work.names) for work in works]


def test_products_of_grids_and_seeds():
    assert len(TRIALS) == 8
    assert TRIALS[1] == {"estimator.name": "kf_rtrl", "optimizer.learning_rate": 1e-2, "seed": 1}
    assert sweep.grid(a=[1, 2], b=[3]) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]


def test_draws_of_a_longer_sweep_begin_with_those_of_a_shorter():
    path = "optimizer.learning_rate"
    short, long = (overrides.log_uniform(path, 1e-4, 1e-1, count) for count in (3, 200))
    assert long[:3] == short
    assert overrides.log_uniform(path, 1e-4, 1e-1, 3, seed=1) != short
    drawn = np.log10([own[path] for own in long])
    # The mean of 200 uniform draws from [-4, -1] has a standard error of 0.06.
    assert abs(np.mean(drawn) + 2.5) < 0.25
    assert drawn.min() >= -4
    assert drawn.max() <= -1
    other = overrides.log_uniform("optimizer.clip_norm", 1e-4, 1e-1, 3)
    assert [*other[0].values()] != [*short[0].values()]
    for low, high in ((0, 1), (1, 1), (-1, 1), (1, float("inf"))):
        with pytest.raises(ConfigError, match="needs 0 < low < high"):
            overrides.log_uniform(path, low, high, 3)


def test_fields_that_vary_together():
    both = sweep.paired(sweep.grid(segment_length=[1, 8]), sweep.grid(window=[5, 40]))
    assert both == [{"segment_length": 1, "window": 5}, {"segment_length": 8, "window": 40}]
    with pytest.raises(ConfigError, match="lists of the same length, got 1, 2 overrides"):
        sweep.paired(sweep.seeds(1), sweep.seeds(2))


def test_trials_that_differ_in_seed_and_floats_are_one_program(tmp_path):
    assert planned(tmp_path, TRIALS, {}) == ["0123", "4567"]


def test_a_program_holds_no_more_trials_than_fit(tmp_path):
    assert planned(tmp_path, TRIALS, {}, most=3) == ["012", "3", "456", "7"]


def test_a_program_takes_as_many_trials_as_the_memory_holds(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 300)
    monkeypatch.setattr(memory, "needed", lambda built: (100, 50))
    assert [sweep._size_of(None, waiting) for waiting in (2, 4)] == [2, 3]
    monkeypatch.setattr(sweep.jax, "local_device_count", lambda: 2)
    assert [sweep._size_of(None, waiting) for waiting in (1, 2, 4)] == [1, 2, 2]


def test_what_is_done_is_not_planned_and_groups_come_in_the_order_of_the_list(tmp_path):
    done = {"000": {"step": 40}, "001": {"step": 20, "diverged_at": 7}, "002": {"step": 30}}
    assert planned(tmp_path, TRIALS[:4], done) == ["23"]
    configs = {f"{i:03}": small({**own, "num_steps": 40}) for i, own in enumerate(TRIALS)}
    work = trials.Work(tmp_path / "groups" / "002", ("002", "003"))
    trials.begin(work, tmp_path / "trials", configs)
    # Without a checkpoint nothing is lost if trials are grouped anew.
    assert planned(tmp_path, TRIALS, {}) == ["0123", "4567"]
    (work.folder / "checkpoints" / "10").mkdir(parents=True)
    # Trials are known by their configs, not by their places.
    assert planned(tmp_path, TRIALS[::-1], {}) == ["7654", "23", "10"]
    assert planned(tmp_path, TRIALS, {}) == ["01", "23", "4567"]


def test_a_trial_is_the_single_run(swept, tmp_path, monkeypatch):
    folder, results = swept
    trial = 3
    unsaved_pictures(monkeypatch)
    config = small({**TRIALS[trial], "num_steps": 40, "checkpoint_every": 0})
    train.train(config, tmp_path)
    alone = metrics.read(tmp_path / "metrics.jsonl")
    together = metrics.read(folder / "trials" / f"{trial:03}" / "metrics.jsonl")
    for name in ("step", "loss", "running_loss", "gradient_norm", "sequence_length"):
        np.testing.assert_allclose(
            [r[name] for r in together], [r[name] for r in alone], rtol=1e-6, err_msg=name
        )
    assert results[trial] == {**together[-1], "loss_unit": "bits/char"}
    written = workdir.read_document(folder / "trials" / f"{trial:03}" / "config.json")
    assert written == config.to_dict()


def test_a_group_of_one_has_its_own_floats(tmp_path, monkeypatch):
    unsaved_pictures(monkeypatch)
    trials = [{"optimizer.learning_rate": rate} for rate in (1e-3, 1e-1)]
    changes = {"num_steps": 40, "estimator.name": "truncated"}
    config = small(changes)
    folder = tmp_path / "sweep"
    sweep.run_sweep(config, trials, folder, group_size=1)
    for number, own in enumerate(trials):
        alone = tmp_path / f"alone_{number}"
        train.train(small({**changes, **own}), alone)
        logs = [
            metrics.read(path / "metrics.jsonl")
            for path in (folder / "trials" / f"00{number}", alone)
        ]
        losses = [[record["loss"] for record in log] for log in logs]
        np.testing.assert_allclose(*losses, rtol=1e-6)
    both = [
        metrics.read(folder / "trials" / name / "metrics.jsonl")[-1]["loss"]
        for name in ("000", "001")
    ]
    assert abs(both[0] - both[1]) > 1e-3


def test_an_experiment_serves_a_run_of_its_floats_and_devices_alone():
    run = small()
    own, other = build(run), small({"optimizer.learning_rate": 0.5})
    assert make_group([run], own).run_chunk is own.run_chunk
    for base, config in ((own, other), (build(run, devices=2), run)):
        assert make_group([config], base).run_chunk is not base.run_chunk


def test_trials_side_by_side_are_evaluated_with_their_own_floats(tmp_path):
    changes = {**text(tmp_path / "text"), "cell.name": "lif", "cell.hidden_size": 8}
    runs = [small({**changes, "cell.leak": leak}) for leak in (0.5, 0.95)]
    together = make_group(runs)
    parameters = together.learned(jax.jit(together.init)())
    stream = together.about.held_out["valid"]
    found = jax.jit(together.evaluate)(parameters, stream)
    own = jax.tree.map(lambda x: x[0], parameters)
    alone = [jax.jit(make_group([run]).evaluate) for run in runs]
    for number, evaluate in enumerate(alone):
        expected = evaluate(together.part(parameters, number), stream)
        np.testing.assert_allclose(found.loss[number], expected.loss, rtol=1e-6)
    # With the same parameters the two cells differ.
    first, second = (evaluate(own, stream).loss for evaluate in alone)
    assert np.abs(np.asarray(first) - np.asarray(second)).max() > 1e-3


def test_results_and_pictures_are_written(swept):
    folder, results = swept
    written = of_trials(folder)
    assert [trial["overrides"] for trial in written] == TRIALS
    assert [trial["trial"] for trial in written] == [f"{i:03}" for i in range(8)]
    assert [trial["result"] for trial in written] == results
    with open(folder / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert rows[3]["optimizer.learning_rate"] == "0.001"
    assert [float(row["loss"]) for row in rows] == [result["running_loss"] for result in results]
    assert {row["status"] for row in rows} == {"done"}
    for name in ("sweep.png", "sweep_learning_rate.png"):
        assert matplotlib.image.imread(folder / name).ndim == 3
    for i in range(8):
        start, *scalars, end = read_events(folder / "trials" / f"{i:03}" / "tensorboard")[1:]
        assert [event.step for event in scalars] == [10, 20, 30, 40]
        hparams = HParamsPluginData.FromString(plugin_of(start)).session_start_info.hparams
        assert set(hparams) == set(TRIALS[i])
        assert HParamsPluginData.FromString(plugin_of(end)).session_end_info.status == 1


def test_a_finished_sweep_has_nothing_left_to_do(swept, monkeypatch):
    folder, results = swept
    unsaved_pictures(monkeypatch)
    monkeypatch.setattr(jobs, "run", pytest.fail)
    assert sweep.run_sweep(BASE, TRIALS[::-1], folder) == results[::-1]
    assert sweep.run_sweep(BASE, TRIALS, folder) == results


def test_damaged_results_are_made_from_the_checkpoints(swept, tmp_path, capsys, monkeypatch):
    folder, results = swept
    unsaved_pictures(monkeypatch)
    shutil.copytree(folder, tmp_path / "sweep")
    path = tmp_path / "sweep" / "sweep.json"
    path.write_text(path.read_text().replace('"running_loss": 1', '"running_loss": 2', 1))
    monkeypatch.setattr(loop.Training, "_compiled", pytest.fail)
    assert sweep.run_sweep(BASE, TRIALS, tmp_path / "sweep") == results
    assert "sweep.json is not as it was written; moved to" in capsys.readouterr().out
    assert (tmp_path / "sweep" / "set_aside" / "sweep.json").exists()


def test_a_sweep_is_extended_by_trials_and_by_steps(tmp_path, monkeypatch):
    """Whatever was there first, the results are those of a sweep that had all from the start."""
    unsaved_pictures(monkeypatch)
    rates = sweep.grid(**{"optimizer.learning_rate": [1e-2, 1e-3]})
    base = {**BASE, "estimator": "truncated"}
    whole = sweep.run_sweep(base, rates, tmp_path / "whole")
    sweep.run_sweep({**base, "num_steps": 20}, rates[1:], tmp_path / "parts")
    sweep.run_sweep(base, rates[1:], tmp_path / "parts")
    parts = sweep.run_sweep(base, rates, tmp_path / "parts")
    for one, other in zip(whole, parts, strict=True):
        assert one.keys() == other.keys()
        for name in timeless(one).keys() - {"loss_unit"}:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-6, err_msg=name)
    assert [trial["trial"] for trial in of_trials(tmp_path / "parts")] == ["001", "000"]


def test_a_group_that_fails_does_not_keep_the_others_from_running(tmp_path, monkeypatch, capsys):
    unsaved_pictures(monkeypatch)
    run, base = jobs.run, {**BASE, "num_steps": 20, "estimator": "truncated"}

    def broken(job, base, **kwargs):
        if "001" in job.work.names:
            raise RuntimeError("broken\nhere")
        return run(job, base, **kwargs)

    changes = sweep.grid(**{"cell.hidden_size": [2, 3]})
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "run", broken)
        message = r"1 of 2 groups of trials failed \(trials 001: RuntimeError: broken here\)"
        with pytest.raises(trials.SweepError, match=message):
            sweep.run_sweep(base, changes, tmp_path)
    shown = capsys.readouterr().out
    assert "error: trials 001: RuntimeError: broken here" in shown
    assert "sweep: 1 of 2 trials done, 1 waiting; about 0:" in shown
    assert "sweep: 1 of 2 trials done, 1 failed\n" in shown
    assert [trial["result"] is None for trial in of_trials(tmp_path)] == [False, True]
    results = sweep.run_sweep(base, changes, tmp_path)
    assert [result["step"] for result in results] == [20] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spark", r"--engine must be one of local, ray, slurm, with options as in .*, got 'spark'"),
        ("local(cpus=2)", "--engine=local has no options"),
        ("[1, 2]", "--engine must be one of local, ray, slurm"),
    ],
)
def test_an_engine_that_does_not_exist_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        engines.make(text)


class KilledError(Exception):
    pass


@pytest.fixture
def _compiled_once():
    with compiled_once():
        yield


@pytest.mark.usefixtures("_compiled_once")
def test_a_sweep_that_is_killed_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    unsaved_pictures(monkeypatch)
    base = {**BASE, "checkpoint_every": 20, "estimator": "truncated"}
    whole = sweep.run_sweep(base, sweep.seeds(2), tmp_path / "whole")
    advance = loop.Training._advance

    def killed(training, chunk):
        if training.step == 30:
            raise KilledError
        advance(training, chunk)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Training, "_advance", killed)
        with pytest.raises(KilledError):
            sweep.run_sweep(base, sweep.seeds(2), tmp_path / "parts")
    steps = []

    def counted(training, chunk):
        steps.append(training.step)
        advance(training, chunk)

    monkeypatch.setattr(loop.Training, "_advance", counted)
    parts = sweep.run_sweep(base, sweep.seeds(2), tmp_path / "parts")
    assert steps == [20, 30]
    for i in range(2):
        logs = [records(tmp_path / name / "trials" / f"{i:03}") for name in ("whole", "parts")]
        assert logs[0] == logs[1]
        assert timeless(parts[i]) == timeless(whole[i])


def test_trials_of_a_version_that_had_fewer_fields_are_the_same_trials(tmp_path):
    names, _ = trials.claim(tmp_path, [small({"seed": seed}) for seed in range(2)])
    path = tmp_path / workdir.CONFIG
    before = workdir.read_document(path)
    for config in before.values():
        del config["on_nonfinite"], config["optimizer"]["b1"]
    workdir.write_document(path, before)
    assert trials.claim(tmp_path, [small({"seed": seed}) for seed in range(2)])[0] == names
    with pytest.raises(
        WorkdirError, match=r"by another sweep.*on_nonfinite \(\"stop\" there, \"skip\" now"
    ):
        trials.claim(tmp_path, [small({"seed": s, "on_nonfinite": "skip"}) for s in range(2)])


def test_progress_counts_trials_and_extrapolates(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    runs = {f"{i:03}": small({"seed": i, "num_steps": 40}) for i in range(7)}
    results = {"006": {"step": 20, "diverged_at": 20}}
    groups = [trials.Work(tmp_path / "groups" / n[0], n) for n in (("000", "001"), ("002",))]
    groups += [trials.Work(tmp_path / "groups" / n, (n,)) for n in ("003", "004", "005")]
    all_jobs = [jobs.Job(work, (), (), tmp_path, "", {}) for work in groups]
    tell = progress.make_progress(all_jobs, runs, results)
    log = tmp_path / "trials" / "003"
    log.mkdir(parents=True)
    metrics.open_log(log)[0].write({"step": 10})
    now[0] = 90.0
    results.update({"000": {"step": 40}, "001": {"step": 30, "diverged_at": 30}})
    # 2 * 40 steps of the first group and 10 of the trial 003 took 90 s; 40 + 30 + 40 + 40 are left.
    line = "sweep: 1 of 7 trials done, 2 diverged, 1 running, 3 waiting; about 2:30 left"
    assert tell(all_jobs[0], []) == line
    line = "sweep: 1 of 7 trials done, 2 diverged, 1 failed, 1 running, 2 waiting; about 1:50 left"
    assert tell(all_jobs[1], ValueError()) == line


def test_another_sweep_is_refused(swept):
    folder, _ = swept
    message = r"its trial 000 is not in this one \(seed \(0 there, 7 now\)\); a sweep may get more"
    with pytest.raises(WorkdirError, match=message):
        sweep.run_sweep(BASE, [{**TRIALS[0], "seed": 7}, *TRIALS[1:]], folder)


def test_a_trial_that_diverges_leaves_the_others_alone(tmp_path):
    rates = sweep.grid(**{"optimizer.learning_rate": [1e-3, 1e308]})
    changes = {"num_steps": 20, "optimizer.name": "sgd", "estimator.name": "truncated"}
    base = nested({**changes, **text(tmp_path / "data")})
    good, bad = sweep.run_sweep(base, rates, tmp_path / "sweep")
    assert good["step"] == 20
    assert good["valid_loss"] > 0
    assert good["test_loss"] > 0
    network = kf.load(tmp_path / "sweep" / "trials" / "000")
    assert network.config.optimizer.learning_rate == 1e-3
    assert 1 <= bad["diverged_at"] <= 20
    assert "no longer finite" in bad["problem"]


def test_a_sweep_of_nothing_but_diverged_trials_has_its_rows(tmp_path, capsys):
    rates = sweep.grid(**{"optimizer.learning_rate": [1e307, 1e308]})
    changes = {"num_steps": 20, "optimizer.name": "sgd", "estimator.name": "truncated"}
    results = sweep.run_sweep(nested(changes), rates, tmp_path, group_size=1)
    assert len(list((tmp_path / "groups").iterdir())) == 2
    assert all(result["diverged_at"] >= 1 for result in results)
    with open(tmp_path / "results.csv") as file:
        assert {row["status"] for row in csv.DictReader(file)} == {"diverged"}
    shown = capsys.readouterr().out
    assert "trial 001: learning_rate 1e+308 diverged: " in shown
    assert "sweep: 0 of 2 trials done, 2 diverged\n" in shown


def test_a_bad_trial_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"trial 1 of the sweep: config\.estimator\.name: there"):
        sweep.run_sweep(BASE, [{}, {"estimator.name": "kfrtl"}], tmp_path)
    # Alone it is refused; beside others it is a tracer, whose value no factory sees.
    fractions = sweep.grid(
        **{"task": ["flip_flop(batch_size=2)"], "task.pulse_probability": [0.1, 2.0]}
    )
    outside = r"config\.task: pulse_probability must be in \[0, 1\], got 2.0"
    with pytest.raises(ConfigError, match=f"trial 1 of the sweep: {outside}"):
        sweep.run_sweep(BASE, fractions, tmp_path)
    with pytest.raises(ConfigError, match=f"trial 1 of the sweep: {outside}"):
        sweep.describe(BASE, fractions)
    with pytest.raises(ConfigError, match=r"config\.foo is not a field of a config"):
        sweep.run_sweep(BASE, [{"foo.bar": 3}], tmp_path)
    with pytest.raises(ConfigError, match="the sweep has no trials"):
        sweep.run_sweep(BASE, [], tmp_path)
    with pytest.raises(ConfigError, match=r"get_sweep\(\) must return a list of dicts"):
        sweep.run_sweep(BASE, ["seed"], tmp_path)
    assert not list(tmp_path.iterdir())
